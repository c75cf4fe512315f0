"""The vocabulary contract as a plan checks it: from both ``tokenizer.json`` files, without transformers or torch.

A run checks the same with the tokenizers themselves (:mod:`vold_nemo.data.vocabulary`).
"""

from __future__ import annotations

import json
from pathlib import Path

from vold_nemo.config import Config, ConfigError


def token_ids(folder: str) -> dict[int, str] | None:
    """id -> token, added tokens included; None without a ``tokenizer.json``."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    vocabulary = content["model"].get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((row[0], i) for i, row in enumerate(vocabulary))
    return {number: token for token, number in pairs} | {row["id"]: row["content"] for row in content["added_tokens"]}


def contract(config: Config) -> list[str]:
    """Lines on the ids both tokenizers share, for each teacher; what could not be checked is said.

    Raises:
        ConfigError: an id that means two different tokens, by its first one.
    """
    if not config.objective.kl.enabled:
        return []
    named = {"teacher": config.teacher, **{f"teachers.{name}": one for name, one in config.teachers.items()}}
    return [_contract(config, key, one.path) for key, one in named.items()]


def _contract(config: Config, key: str, path: str) -> str:
    student, teacher = token_ids(config.student.path), token_ids(path)
    if student is None or teacher is None:
        return "vocabulary: not checked, no tokenizer.json here yet; every run checks it at its start"
    common = student.keys() & teacher.keys()
    differing = sorted(i for i in common if student[i] != teacher[i])
    if differing:
        first = differing[0]
        raise ConfigError(
            f"{key}.path", f"id {first} is {teacher[first]!r} for the teacher, {student[first]!r} for the student",
            "a teacher whose tokenizer agrees with the student's on every id that both have",
            "choose a teacher of the student's tokenizer family (Qwen3 for Qwen2.5-VL)",
        )  # fmt: skip
    only = [f"{len(side.keys() - common)} only the {name} has" for name, side in (("student", student), (key, teacher))]
    if config.tokenizer.adopt_teacher_tokens:
        only[1] += " (adopted in spare rows)"
    return f"vocabulary: both tokenizers share {len(common)} ids; {', '.join(only)}"
