"""The student takes over tokens that only its teacher has: Qwen3's ``<think>`` for a student of the Qwen2.5 family.

Qwen2.5 tokenizers end at id 151664 while their embedding tables have 151936 rows or more; Qwen3's four extra tokens are the
next ids.  Adopted, they keep the teacher's ids and get rows that were spare, so no table grows and no id moves.  A student
that has them can be shown a thinking teacher's traces as they are, and the KL covers them.  They are added to the tokenizer
in memory, their rows are written into the model (:func:`vold_nemo.megatron.weights.adopt_rows`), and an export appends them
to the tokenizer's files.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError, TeacherConfig
from vold_nemo.config.json_files import read_object
from vold_nemo.data.templates import load_tokenizer
from vold_nemo.data.vocabulary import VocabularyContract, first_difference
from vold_nemo.megatron import architecture

KEY = "tokenizer.adopt_teacher_tokens"


def agree(
    config: Config, tokenizer, rows: int, scorers: Sequence[TeacherConfig], *, padded: int
) -> tuple[dict[int, tuple[int, ...]], VocabularyContract]:
    """What the student takes over, and the contract that then holds.

    Args:
        tokenizer: the student's; extended in place where ``tokenizer.adopt_teacher_tokens`` asks for it.
        rows, padded: of the student's embedding table, and of the LM heads.
        scorers: the teachers of stage 2; none = stage 1, or no KL.

    Returns:
        See :func:`adopt`; ids are shared where all tokenizers have them.
    """
    adopted: dict[int, tuple[int, ...]] = {}
    others = scorers or ([config.teacher, *config.teachers.values()] if config.objective.kl.enabled else [])
    for teacher in others if config.tokenizer.adopt_teacher_tokens else ():
        adopted |= adopt(tokenizer, rows, load_tokenizer(teacher.path, teacher.revision))
    if not scorers:
        return adopted, VocabularyContract.from_tokenizers(tokenizer, rows, None, None, padded=padded)
    contracts = [
        VocabularyContract.from_tokenizers(
            tokenizer, rows, load_tokenizer(one.path, one.revision), architecture.read(one.path).vocabulary, padded=padded
        )
        for one in scorers
    ]
    return adopted, functools.reduce(VocabularyContract.and_for, contracts)


def adopt(student, rows: int, teacher) -> dict[int, tuple[int, ...]]:
    """Add to the tokenizer ``student``, in place, every token that only ``teacher`` has.

    Args:
        rows: of the student's embedding table.

    Returns:
        Adopted id -> the ids that the student spells the token's words and signs with, whose mean row it starts from: a row
        of its own near its meaning (``<think>`` begins as the mean of ``<``, ``think``, ``>``; read in one go, Qwen2.5 makes
        it ``<th``, ``ink``, ``>``, a table's head), where a mean over the whole table would be one and the same for all of
        them.  As an LM head it starts at the geometric mean of its parts' probabilities, so it cannot take over.  Without a
        spelling (unknown pieces): no ids, and the mean of the table.

    Raises:
        ConfigError: an id that means two different tokens; a token of the teacher that was learned with its vocabulary and
            not added to it; ids that are not the student's next ones; more tokens than spare rows.
    """
    own = {i: token for token, i in student.get_vocab().items()}
    others = {i: token for token, i in teacher.get_vocab().items()}
    first_difference(own, others)
    extra = sorted(others.keys() - own.keys())
    added = teacher.added_tokens_decoder
    for i, wanted in zip(extra, range(max(own) + 1, max(own) + 1 + len(extra)), strict=True):
        if i not in added or i != wanted or others[i] in own.values():
            reason = "it lies in the teacher's own vocabulary" if i not in added else f"the student's next id is {wanted}"
            raise ConfigError(
                KEY, f"{others[i]!r} (id {i}): {reason}", "added tokens that follow the student's last id",
                f"set {KEY}=false: the KL then leaves these ids out",
            )  # fmt: skip
    if extra and extra[-1] >= rows:
        raise ConfigError(
            KEY, f"{len(extra)} tokens up to id {extra[-1]}", f"ids below {rows}, the rows of the student's embedding",
            f"set {KEY}=false, or resize the student's embedding first",
        )  # fmt: skip
    spelled = {i: tuple(_spelling(student, others[i])) for i in extra}
    student.add_tokens([added[i] for i in extra])
    return spelled


def _spelling(tokenizer, token: str) -> list[int]:
    """Ids of the words of ``token`` and of the signs between them, without unknown ones."""
    words = tokenizer(re.findall(r"\w+|\W+", token), add_special_tokens=False)["input_ids"]
    return [part for word in words for part in word if part != tokenizer.unk_token_id]


def tokens_of(folder: Path) -> list[dict[str, Any]]:
    """The added tokens that the files of a checkpoint list; none without a ``tokenizer.json``."""
    file = folder / "tokenizer.json"
    return read_object(file, "copy the tokenizer again").get("added_tokens", []) if file.is_file() else []


def append_tokens(folder: Path, tokens: Iterable[dict[str, Any]]) -> Sequence[str]:
    """Append those of ``tokens`` that the tokenizer files in ``folder`` lack; a file that lacks none keeps its bytes.

    Returns what was appended.
    """
    have = {token["id"] for token in tokens_of(folder)}
    new = [token for token in tokens if token["id"] not in have]
    if not new:
        return []

    def change(name: str, edit) -> None:
        file = folder / name
        if file.is_file():
            content = read_object(file, "copy the tokenizer again")
            edit(content)
            file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def configure(content: dict) -> None:
        if "added_tokens_decoder" in content:
            content["added_tokens_decoder"] |= {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in new
            }

    change("tokenizer.json", lambda content: content["added_tokens"].extend(new))
    change("tokenizer_config.json", configure)
    change("added_tokens.json", lambda content: content.update({token["content"]: token["id"] for token in new}))
    return [token["content"] for token in new]
