"""The vocabulary contract between student and teacher: which ids mean the same, checked before anything is built.

Three sets of ids, defined here and nowhere else.  With ``S`` and ``T`` the rows of the two embedding tables and ``V``
the padded vocabulary that both LM heads are built with (so that shard i of a rank covers the same ids in both):

    sampleable   0 <= id < S                        the engine can sample it: normalises log-prob and entropy
    shared       both tokenizers have it, and the   normalises the KL
                 token string is the same
    padding      max(S, T) <= id < V                Megatron's rows; in neither set

Qwen2.5 tokenizers end at id 151664 and Qwen3 adds four tokens (``<think>`` among them); their tables have 151936 or
152064 rows.  So one tokenizer may have more tokens than the other, and tables may be padded differently; but an id that
both have must be the same token, or the teacher would score another text than the one the student wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import BoolTensor

from vold_nemo.config import ConfigError
from vold_nemo.objective.vocabulary import VocabularyShard


@dataclass(frozen=True)
class VocabularyContract:
    """What the two models agreed on.  Without a teacher all of the student's ids are shared."""

    padded: int  # V
    student_rows: int  # S
    teacher_rows: int | None  # T
    sampleable: BoolTensor  # [V]
    shared: BoolTensor  # [V]
    student_only: dict[int, str]  # ids that only one tokenizer has
    teacher_only: dict[int, str]
    added_tokens: list[dict] = field(default_factory=list)  # the student's, as tokenizer.json lists them

    @property
    def engine_rows(self) -> int:
        """How many ids the rollout engine can sample: ``config.vocab_size`` of the student."""
        return self.student_rows

    @classmethod
    def from_tokenizers(
        cls, student, student_rows: int, teacher, teacher_rows: int | None, *, padded: int
    ) -> VocabularyContract:
        """Compare two ``transformers`` tokenizers id by id, special tokens included.

        Args:
            student, teacher: tokenizers; ``teacher`` None = no teacher (``teacher_rows`` None too).
            student_rows, teacher_rows: rows of the embedding tables.
            padded: the vocabulary that Megatron builds both heads with, at least ``max(student_rows, teacher_rows)``.

        Raises:
            ConfigError: an id that means two different tokens (the first one is named), a tokenizer with ids beyond its
                embedding table, no shared id, or a student's end-of-sequence id that the teacher lacks.
        """
        tokens = _tokens(student, student_rows, "student.path")
        sampleable = _mask(padded, range(student_rows))
        if teacher is None:
            return cls(padded, student_rows, None, sampleable, _mask(padded, tokens), {}, {}, added_tokens(student))
        others = _tokens(teacher, teacher_rows, "teacher.path")
        common = first_difference(tokens, others)
        end = student.eos_token_id
        if not common or (end is not None and end not in others):
            raise ConfigError(
                "teacher.path", f"{len(common)} shared ids, the student's end of sequence {end} not among them",
                "tokenizers that share their ids", "choose a teacher of the student's tokenizer family",
            )  # fmt: skip
        return cls(
            padded, student_rows, teacher_rows, sampleable, _mask(padded, common),
            {i: tokens[i] for i in sorted(tokens.keys() - others.keys())},
            {i: others[i] for i in sorted(others.keys() - tokens.keys())},
            added_tokens(student),
        )  # fmt: skip

    def and_for(self, other: VocabularyContract) -> VocabularyContract:
        """One contract for two teachers: the KL is taken over the ids that all three tokenizers share."""
        return replace(
            self, teacher_rows=max(self.teacher_rows, other.teacher_rows), shared=self.shared & other.shared,
            student_only=self.student_only | other.student_only, teacher_only=self.teacher_only | other.teacher_only,
        )  # fmt: skip

    def shard(self, rank: int, tensor: int, device: torch.device | str = "cpu", group=None) -> VocabularyShard:
        """The rows of tensor-parallel rank ``rank`` of ``tensor``: ``[rank V / tensor, (rank + 1) V / tensor)``."""
        return VocabularyShard.of(rank, tensor, self.sampleable.to(device), self.shared.to(device), group)

    def describe(self) -> str:
        """Lines for the plan: rows, shared ids, and what only one side has."""
        lines = [f"vocabulary: {self.padded} rows in both LM heads; the engine samples from {self.student_rows}"]
        if self.teacher_rows is not None:
            shared = int(self.shared.sum())
            lines.append(f"  the KL is taken over {shared} shared ids; the teacher's table has {self.teacher_rows} rows")
            for side, only in (("student", self.student_only), ("teacher", self.teacher_only)):
                if only:
                    named = ", ".join(f"{token} ({i})" for i, token in list(only.items())[:6])
                    lines.append(f"  {len(only)} tokens only the {side} has: {named}{' ...' if len(only) > 6 else ''}")
        return "\n".join(lines)


def added_tokens(tokenizer) -> list[dict]:
    """The tokenizer's added tokens as ``tokenizer.json`` lists them."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    found = sorted(tokenizer.added_tokens_decoder.items())
    return [{"id": i, "content": token.content, **{flag: getattr(token, flag) for flag in flags}} for i, token in found]


def first_difference(tokens: dict[int, str], others: dict[int, str]) -> list[int]:
    """Ids that both the student (``tokens``) and the teacher have, ascending.

    Raises:
        ConfigError: some of them mean different tokens; the first is named.
    """
    common = sorted(tokens.keys() & others.keys())
    differing = [i for i in common if tokens[i] != others[i]]
    if differing:
        first = differing[0]
        raise ConfigError(
            "teacher.path",
            f"id {first} is {others[first]!r} for the teacher, {tokens[first]!r} for the student "
            f"({len(differing)} of {len(common)} ids differ)",
            "a teacher whose tokenizer agrees with the student's on every id that both have",
            "choose a teacher of the student's tokenizer family (Qwen3 for Qwen2.5-VL)",
        )
    return common


def _tokens(tokenizer, rows: int, key: str) -> dict[int, str]:
    """id -> token string, special and added tokens included."""
    tokens = {i: token for token, i in tokenizer.get_vocab().items()}
    outside = sorted(i for i in tokens if i >= rows)
    if outside:
        raise ConfigError(
            key, f"token {tokens[outside[0]]!r} has id {outside[0]}, the embedding table {rows} rows",
            "a tokenizer whose ids all have a row", "use the checkpoint's own tokenizer, or resize its embedding",
        )  # fmt: skip
    return tokens


def _mask(size: int, ids) -> BoolTensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.tensor(list(ids), dtype=torch.int64)] = True
    return mask
