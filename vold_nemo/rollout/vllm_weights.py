"""Where vLLM keeps each tensor of a checkpoint's language model: read back, this rank's part, under the name on disk.

vLLM loads by rules of its own (``model.load_weights``); these are written down independently of them, so that fingerprints
of what is read back prove the load.  They cover dense decoders whose weights vLLM leaves as they were stored: bf16 or fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
LANGUAGE = "language_model."  # where vLLM's vision-language models keep the decoder


@dataclass(frozen=True)
class Live:
    """One tensor of the checkpoint: its shape there, and a view of what this rank keeps of it."""

    name: str
    shape: tuple[int, ...]
    part: Tensor


def read_live(model: nn.Module, has_vision: bool) -> Iterator[Live]:
    """Every language parameter, unfused; a tied head is its embedding and comes once.  No collectives."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if has_vision and not prefix.startswith(LANGUAGE):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield from _unfused(f"{prefix.removeprefix(LANGUAGE)}.{key}", module, parameter.detach())


def _unfused(name: str, module: nn.Module, part: Tensor) -> Iterator[Live]:
    """One parameter of one module."""
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    behind = tuple(part.shape[1:])
    if isinstance(module, QKVParallelLinear):
        q, k = module.num_heads * module.head_size, module.num_kv_heads * module.head_size
        groups = module.total_num_kv_heads
        rows = [module.total_num_heads * module.head_size, groups * module.head_size, groups * module.v_head_size]
        yield from _cut(name, "qkv_proj", part, [q, k, module.num_kv_heads * module.v_head_size], rows)
    elif isinstance(module, MergedColumnParallelLinear):
        sizes = [size // module.tp_size for size in module.output_sizes]
        yield from _cut(name, "gate_up_proj", part, sizes, module.output_sizes)
    elif isinstance(module, ColumnParallelLinear):
        yield Live(name, (module.output_size, *behind), part)
    elif isinstance(module, RowParallelLinear) and part.ndim == 2:
        yield Live(name, (len(part), module.input_size), part)
    elif isinstance(module, VocabParallelEmbedding):  # the head, too; its rows are padded, and the padding comes last
        rows = min(len(part), max(0, module.org_vocab_size - module.tp_rank * len(part)))
        yield Live(name, (module.org_vocab_size, *behind), part[:rows])
    else:
        yield Live(name, tuple(part.shape), part)


def _cut(name: str, fused: str, part: Tensor, sizes: Sequence[int], rows: Sequence[int]) -> Iterator[Live]:
    for single, piece, all_ in zip(FUSED[fused], part.split(list(sizes)), rows, strict=True):
        yield Live(name.replace(fused, single), (all_, *piece.shape[1:]), piece)
