"""Where vLLM keeps each tensor of a checkpoint's language model: read back, whole, under the name on disk.

vLLM loads by rules of its own (``model.load_weights``); these are written down independently of them, so that fingerprints
of what is read back prove the load.  They cover dense decoders whose weights vLLM leaves as they were stored: bf16 or fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
LANGUAGE = "language_model."  # where vLLM's vision-language models keep the decoder


def read_live(model: nn.Module, has_vision: bool) -> Iterator[tuple[str, Tensor]]:
    """(name on disk, full tensor) of every language parameter; a tied head is its embedding and comes once.

    Without vLLM tensor parallelism these are views of the live weights.  With it, each is gathered when its turn comes: one
    all-gather over the engine's tensor group, by all of its ranks in the same order; never more than one tensor beyond the
    model.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if has_vision and not prefix.startswith(LANGUAGE):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield from _whole(f"{prefix.removeprefix(LANGUAGE)}.{key}", module, parameter.detach())


def _whole(name: str, module: nn.Module, part: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One parameter of one module, unfused and unsplit."""
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if isinstance(module, QKVParallelLinear):
        q, k = module.num_heads * module.head_size, module.num_kv_heads * module.head_size
        sizes, copies = [q, k, module.num_kv_heads * module.v_head_size], [1, *[module.num_kv_head_replicas] * 2]
        yield from _unfused(name, "qkv_proj", part, sizes, copies)
    elif isinstance(module, MergedColumnParallelLinear):
        sizes = [size // module.tp_size for size in module.output_sizes]
        yield from _unfused(name, "gate_up_proj", part, sizes, [1] * len(sizes))
    elif isinstance(module, ColumnParallelLinear):
        yield name, _gather(part, 0)
    elif isinstance(module, RowParallelLinear) and part.ndim == 2:
        yield name, _gather(part, 1)
    elif isinstance(module, VocabParallelEmbedding):  # the head, too; its rows are padded, and the padding comes last
        yield name, _gather(part, 0)[: module.org_vocab_size]
    else:
        yield name, part


def _unfused(name: str, fused: str, part: Tensor, sizes: list[int], copies: list[int]) -> Iterator[tuple[str, Tensor]]:
    """``copies``: ranks in a row that hold the same rows, where there are more ranks than key-value heads."""
    for single, piece, each in zip(FUSED[fused], part.split(sizes), copies, strict=True):
        yield name.replace(fused, single), _gather(piece, 0, each)


def _gather(part: Tensor, axis: int, copies: int = 1) -> Tensor:
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return part
    whole = group.all_gather(part.contiguous(), axis)
    return whole if copies == 1 else torch.cat(whole.chunk(group.world_size, axis)[::copies], axis)
