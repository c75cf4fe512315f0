"""Which part of each language tensor a rank of a tensor-parallel vLLM engine keeps; vLLM's own loader is given no more.

The rule is written down here, for the trainer, which sends by it; vLLM's loader has its own.  It asks a whole tensor for its
rows or columns (``narrow``): :class:`Partial` stands in for the whole one, answers with the part that came, and refuses any
other question.  So where the two rules differ, a load fails.  Of vLLM 0.32's ``model_executor/layers`` these loaders do so,
for bf16 and fp32: ``linear.py`` (``weight_loader``) and ``vocab_parallel_embedding.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Box = tuple[tuple[int, int], ...]  # (start, stop) along every axis

ROWS, GROUPS, COLUMNS = ("q_proj", "gate_proj", "up_proj"), ("k_proj", "v_proj"), ("o_proj", "down_proj")
VOCABULARY = ("embed_tokens", "lm_head")
PADDING = 64  # rows of a vocabulary come in multiples of it (vLLM's DEFAULT_VOCAB_PADDING_SIZE)


def whole(shape: Sequence[int]) -> Box:
    return tuple((0, size) for size in shape)


def share(name: str, shape: Sequence[int], rank: int, ranks: int, groups: int) -> Box:
    """What rank ``rank`` of an engine's ``ranks`` keeps of tensor ``name``, whole ``shape``.  ``groups``: key-value heads.

    Of the query, gate and up projection rows, of the output and down projection columns, in equal parts; of key and value
    whole heads, on several ranks where they are fewer; of embedding and head a part of the padded rows, which for the last
    ranks may be less, or nothing.  Anything else (norms; experts, which no engine here has) is whole on every rank.
    """
    box, module = list(whole(shape)), name.split(".")[-2] if "." in name else name
    if ranks == 1 or ".experts." in name:
        return tuple(box)
    if module in GROUPS:
        parts = min(ranks, groups)
        box[0] = _equal(shape[0], rank * parts // ranks, parts)
    elif module in ROWS:
        box[0] = _equal(shape[0], rank, ranks)
    elif module in COLUMNS and len(shape) == 2:
        box[1] = _equal(shape[1], rank, ranks)
    elif module in VOCABULARY:
        padded = -(-shape[0] // PADDING) * PADDING
        start, stop = (min(end, shape[0]) for end in _equal(padded, rank, ranks))
        box[0] = start, stop
    return tuple(box)


def _equal(size: int, part: int, parts: int) -> tuple[int, int]:
    each = size // parts
    return part * each, (part + 1) * each


class Partial(Tensor):
    """A tensor of ``shape`` of which only ``part``, its ``box``, is here.  It has a shape and a type, and can be narrowed to
    the box, which gives ``part``; RuntimeError for anything else."""

    _name: str
    _part: Tensor
    _box: Box

    @staticmethod
    def __new__(cls, name: str, part: Tensor, box: Box, shape: Sequence[int]):
        made = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=part.dtype, device=part.device)
        made._name, made._part, made._box = name, part, box
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is Tensor.narrow and isinstance(args[0], cls) and not kwargs:
            return args[0]._narrowed(*args[1:])
        return super().__torch_function__(func, types, args, kwargs or {})

    def _narrowed(self, axis: int, start: int, size: int) -> Tensor:
        asked = list(whole(self.shape))
        asked[axis] = int(start), int(start) + int(size)
        if tuple(asked) != self._box:
            raise RuntimeError(f"weight load: vLLM asks for {tuple(asked)} of {self._name}, and {self._box} was sent")
        return self._part

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None) -> Any:
        known = next((one for one in args if isinstance(one, cls)), None)
        name = known._name if known is not None else "a tensor"
        raise RuntimeError(f"weight load: vLLM applies {func} to the whole of {name}, of which only a part was sent")
