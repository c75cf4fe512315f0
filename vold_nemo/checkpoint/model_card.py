"""README.md of an exported checkpoint: where it comes from, and how it was made."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

from vold_nemo import __version__
from vold_nemo.config.places import root

PAPER = "https://arxiv.org/abs/2510.23497"
_FINAL = ("loss", "reward_mean", "kl_mean", "entropy", "grad_norm", "learning_rate", "response_tokens")


def model_card(run: Path, base: str, weights: str) -> str:
    """Text of the card of the checkpoint trained by ``run`` (a run folder or a ``.nemo`` file) from ``base``.

    ``weights`` says which of the run's weights these are.  Configuration and metrics are taken from the run where it has
    them; a ``.nemo`` file holds its configuration only.
    """
    configuration, metrics = _configuration(run), _metrics(run)
    head = f"base_model: {base}\n" if _is_hub_id(base) else ""
    data = "".join(f"- {title}: `{value}`\n" for title, value in _data(configuration))
    if metrics:
        said = ", ".join(f"{key} {_short(metrics[key])}" for key in _FINAL if key in metrics)
        data += f"- metrics of step {metrics['step']}: {said}\n"
    settings = f"## Configuration\n\n```yaml\n{configuration.strip()}\n```\n\n" if configuration else ""
    return f"""---
{head}library_name: transformers
tags: [vold, on-policy-distillation]
---

# {Path(base).name}, trained by vold_nemo

The language model of `{base}` was trained on text only with [VOLD]({PAPER}) (arXiv 2510.23497); the vision tower and
projector are the base model's, byte for byte.  It loads like the base model.

## Provenance

- weights: `{weights}`
- base model: `{base}`
- code: vold_nemo {_code()}
{data}
{settings}## Citation

```bibtex
@article{{vold,
  title = {{VOLD: Reasoning Transfer from LLMs to Vision-Language Models via On-Policy Distillation}},
  journal = {{arXiv:2510.23497}},
  year = {{2025}}
}}
```
"""


def _configuration(run: Path) -> str:
    if run.is_dir():
        file = run / "config.yaml"
        return file.read_text() if file.is_file() else ""
    with tarfile.open(run) as archive:
        for name in ("./model_config.yaml", "model_config.yaml"):
            if name in archive.getnames():
                return archive.extractfile(name).read().decode()
    return ""


def _metrics(run: Path) -> dict:
    """The last whole line of metrics.jsonl."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue  # cut off by a kill
    return {}


def _data(configuration: str) -> list[tuple[str, str]]:
    from omegaconf import OmegaConf

    tree = OmegaConf.create(configuration or "{}")
    keys = {"teacher": "teacher.path", "prompts": "data.prompts.path", "traces": "traces.path"}
    found = [(title, OmegaConf.select(tree, key, throw_on_missing=False)) for title, key in keys.items()]
    return [(title, value) for title, value in found if value]


def _code() -> str:
    """Version, and the commit where the code is a git checkout; a changed checkout says so."""
    checkout = root()

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD") if (checkout / ".git").exists() else ""
    if not commit:
        return __version__
    return f"{__version__}, commit {commit}{' with local changes' if git('status', '--porcelain', '-uno') else ''}"


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not Path(base).exists()


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
