"""README.md of an exported checkpoint: its licence, how it loads, how good it is, where it comes from, how it was made."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vold_nemo import __version__
from vold_nemo.checkpoint import archive_file
from vold_nemo.config.literal import parse_yaml
from vold_nemo.config.places import root

PAPER = "https://arxiv.org/abs/2510.23497"
_FINAL = ("loss", "reward_mean", "kl_mean", "entropy", "grad_norm", "learning_rate", "response_tokens")
# A hub model in a local cache, whose path names its user's machine: .../models--Qwen--Qwen3-8B/snapshots/<commit>
_CACHED = re.compile(r"[^\s'\"]*models--([\w.-]+?)--([\w.-]+?)/snapshots/[0-9a-f]+")
_LICENCE = ("license", "license_name", "license_link")

_LOADING = """from transformers import {auto}, AutoTokenizer

checkpoint = "{checkpoint}"
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
model = {auto}.from_pretrained(checkpoint, dtype="auto")
question = [{{"role": "user", "content": "What is 17 times 23? Put the final answer in \\\\boxed{{}}."}}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=2048)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def model_card(
    run: Path, base: str, weights: str, *, scores: Sequence[tuple[str, str]] = (), repo: str | None = None
) -> str:
    """Text of the card of the checkpoint trained by ``run`` (a run folder or a ``.nemo`` file) from ``base``.

    ``weights`` says which of the run's weights these are, ``scores`` what they reach on which set; ``repo`` is the hub id that
    the card will stand under.  Configuration and metrics are taken from the run where it has them (a ``.nemo`` file holds its
    configuration only), the licence from the README.md of ``base``, if that is a folder.
    """
    configuration, metrics, shown, folder = _configuration(run), _metrics(run), _public(base), Path(base)
    licence, sees = _licence(folder), _sees(folder)
    head: dict[str, Any] = {"base_model": shown, "base_model_relation": "finetune"} if _is_hub_id(shown) else {}
    head |= licence | {"library_name": "transformers", "pipeline_tag": "image-text-to-text" if sees else "text-generation"}
    head["tags"] = ["vold", "on-policy-distillation"]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    auto = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
    loading = _LOADING.format(auto=auto, checkpoint=repo or ".")
    images = "\n`AutoProcessor` takes images beside text, as the base model's card shows.\n" if sees else ""
    tower = "; the vision tower and projector are the base model's, byte for byte" if sees else ""
    data = "".join(f"- {title}: `{value}`\n" for title, value in _data(configuration))
    if metrics:
        said = ", ".join(f"{key} {_short(metrics[key])}" for key in _FINAL if key in metrics)
        data += f"- metrics of step {metrics['step']}: {said}\n"
    settings = f"## Configuration\n\n```yaml\n{configuration.strip()}\n```\n\n" if configuration else ""
    return _public(f"""---
{front}---

# {shown.rstrip("/").rpartition("/")[2]}, trained by vold_nemo

The language model of `{shown}` was trained on text only with [VOLD]({PAPER}) (arXiv 2510.23497){tower}.  It loads like the
base model{", here from the folder of this file" if repo is None else ""}:

```python
{loading}```
{images}
## Licence

{_licence_words(licence)}

## Scores

{_scores(scores)}

## Provenance

- weights: `{weights}`
- base model: `{shown}`
- code: vold_nemo {code()}
{data}
{settings}## Citation

```bibtex
@article{{vold,
  title = {{VOLD: Reasoning Transfer from LLMs to Vision-Language Models via On-Policy Distillation}},
  journal = {{arXiv:2510.23497}},
  year = {{2025}}
}}
```
""")


def _licence(base: Path) -> dict[str, str]:
    """What the front matter of the base model's README.md says of its licence, in the hub's keys."""
    file = base / "README.md"
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        _, front, _ = text.split("---\n", 2) if text.startswith("---\n") else ("", "", "")
        said = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):  # a card without front matter, or one that is broken
        return {}
    return {key: said[key] for key in _LICENCE if isinstance(said.get(key), str)} if isinstance(said, dict) else {}


def _licence_words(licence: dict[str, str]) -> str:
    if "license" not in licence:
        return ("No licence was found beside the base model's weights.  Its licence, wherever it is published, holds for this "
                "checkpoint, too.")  # fmt: skip
    name = f"`{licence['license']}`" + (f" ({licence['license_name']})" if "license_name" in licence else "")
    link = f", <{licence['license_link']}>" if "license_link" in licence else ""
    return f"The base model's: {name}{link}.  Files LICENSE and NOTICE, if there are any, are the base model's."


def _scores(scores: Sequence[tuple[str, str]]) -> str:
    if not scores:
        return "None yet: `recipes/evaluate.py` measures them, and an export after it shows them here."
    rows = "".join(f"| {kind} | {value} |\n" for kind, value in scores)
    return f"With `recipes/evaluate.py` of vold_nemo, intervals of 95 %:\n\n| set | accuracy |\n|---|---|\n{rows}".rstrip()


def _sees(base: Path) -> bool:
    """Whether the base model has a vision tower; true where it is not here to be asked, since students have one."""
    file = base / "config.json"
    return "vision_config" in json.loads(file.read_text(encoding="utf-8")) if file.is_file() else True


def _public(text: str) -> str:
    """``text`` with hub ids for folders in a local cache."""
    return _CACHED.sub(r"\1/\2", text)


def _configuration(run: Path) -> str:
    if run.is_dir():
        file = run / "config.yaml"
        return file.read_text() if file.is_file() else ""
    return (archive_file.read(run, "model_config.yaml") or b"").decode("utf-8", "replace")


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
    tree = parse_yaml(configuration, "the run's configuration") or {}  # of a folder or file that anybody may have sent
    keys = {"teacher": "teacher.path", "prompts": "data.prompts.path", "traces": "traces.path"}
    for name in _at(tree, "teachers") or ():
        keys[f"teacher {name}"] = f"teachers.{name}.path"
    found = [(title, _at(tree, key)) for title, key in keys.items()]
    return [(title, value) for title, value in found if value]


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def code() -> str:
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
