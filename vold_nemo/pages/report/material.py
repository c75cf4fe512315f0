"""Everything the page shows, read from the run folders; what is missing is named, not left out in silence."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from vold_nemo.config import Config, ConfigError
from vold_nemo.data.prompts import load_prompts, question_text
from vold_nemo.data.rejected import Rejected
from vold_nemo.evaluation.answer_row import AnswerRow, read_answers
from vold_nemo.evaluation.results import Results
from vold_nemo.pages.blocks import embed_images

PACKAGES = ("torch", "transformers", "megatron-core", "nemo-toolkit", "hydra-core", "datasets", "safetensors")


@dataclass
class RunRecord:
    """One training run: flat metric rows (``seconds.train`` for nested ones) and its resolved configuration."""

    arm: str
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) where the metric was logged and finite."""
        pairs = [(row["step"], row.get(name)) for row in self.rows]
        return [(float(step), float(value)) for step, value in pairs if is_number(value)]

    def seconds(self) -> dict[str, float]:
        """Sum over the run by phase."""
        totals: dict[str, float] = {}
        for row in self.rows:
            for name, value in row.items():
                if name.startswith("seconds.") and is_number(value):
                    totals[name.removeprefix("seconds.")] = totals.get(name.removeprefix("seconds."), 0.0) + value
        return totals


@dataclass
class Example:
    """An image question, its images as data URIs, and each arm's greedy answer row."""

    id: str
    question: str
    truth: str
    images: list[str]
    answers: dict[str, AnswerRow]


@dataclass
class Material:
    results: Results
    runs: dict[str, RunRecord]
    examples: list[Example]
    missing: list[str]
    provenance: list[tuple[str, str]]


def gather(config: Config) -> Material:
    """Read it all.  ConfigError without ``results.json``; anything else that is absent goes to ``missing``."""
    file = Path(config.report.results)
    if not file.is_file():
        raise ConfigError(
            "report.results", str(file), "the results.json of an evaluation", "run recipes/evaluate.py first"
        )
    results = Results.of_file(file)
    missing: list[str] = []
    runs = {arm: read_run(arm, Path(config.outputs) / run, missing) for arm, run in config.report.runs.items()}
    examples = pick_examples(config, results, missing)
    return Material(results, runs, examples, missing, provenance(results))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def flatten(row: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def read_run(arm: str, folder: Path, missing: list[str]) -> RunRecord:
    record = RunRecord(arm, folder)
    metrics, resolved = folder / "metrics.jsonl", folder / "config.yaml"
    if metrics.is_file():
        for line in metrics.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run that was killed, or is still going
                missing.append(f"{metrics}: a line that is not JSON was left out")
                continue
            if isinstance(row, dict) and is_number(row.get("step")):
                record.rows.append(flatten(row))
            else:
                missing.append(f"{metrics}: a line without a step was left out")
    else:
        missing.append(f"no metrics of {arm} at {metrics}")
    if resolved.is_file():
        record.config = yaml.safe_load(resolved.read_text()) or {}
    else:
        missing.append(f"no configuration of {arm} at {resolved}")
    return record


def pick_examples(config: Config, results: Results, missing: list[str]) -> list[Example]:
    """The first ``report.examples`` image questions, in the file's order, on which the trained arms disagree; then others.

    A rule, so that nobody chooses them.  The first arm is the untrained one: it is wrong nearly everywhere, and that it
    disagrees says little.
    """
    answers: dict[str, dict[str, AnswerRow]] = {}
    for arm in results.accuracy:
        file = Path(config.report.results).parent / "answers" / f"{arm}.jsonl"
        if not file.is_file():
            missing.append(f"no answers of {arm} at {file}")
            continue
        answers[arm] = {row.id: row for row in read_answers(file) if row.set == "image" and row.mode == "greedy"}
    if config.evaluate.image is None or not any(answers.values()) or config.report.examples < 1:
        return []
    prompts = load_prompts(
        config.evaluate.image, config.data.system_prompt, Rejected(None, 1.0), instruction=config.data.instruction
    )
    shared = [p for p in prompts if all(p.id in rows for rows in answers.values())]
    trained = list(answers.values())[1:] if len(answers) > 2 else list(answers.values())
    agreed = {p.id: len({rows[p.id].reward for rows in trained}) == 1 for p in shared}
    chosen = sorted(shared, key=lambda p: agreed[p.id])[
        : config.report.examples
    ]  # stable: the file's order within both
    return [
        Example(
            p.id, question_text(p), p.answer or "", embed_images(p), {arm: rows[p.id] for arm, rows in answers.items()}
        )
        for p in chosen
    ]


def provenance(results: Results) -> list[tuple[str, str]]:
    """What made the numbers: code, packages, machine, weights."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    rows = [
        ("Code", commit()),
        ("Packages", ", ".join(versions)),
        ("Machine of this report", f"{platform.machine()}, Python {platform.python_version()}, {platform.system()}"),
        (
            "Evaluation",
            ", ".join(f"{name} {value}" for name, value in results.settings.items() if name != "questions"),
        ),
    ]
    rows += [(f"Questions: {kind}", path) for kind, path in results.settings.get("questions", {}).items()]
    rows += [
        (f"Weights: {arm}", f"{model.path} (blake2b {model.weights})") for arm, model in results.models.items()
    ]
    return rows


def commit() -> str:
    """The git commit this package runs from, and whether files differ from it."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout

    try:
        revision, changed = (
            git("rev-parse", "HEAD").strip(),
            git("status", "--porcelain", "--untracked-files=no").strip(),
        )
    except (OSError, subprocess.SubprocessError):
        return "installed package, no git commit known"
    return f"commit {revision[:12]}" + (", with uncommitted changes" if changed else "")
