"""How far an FP8 teacher's predictions are from the bf16 teacher's, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.objective import KLTerm, Objective, TeacherStates, TokenBatch, VocabularyShard, vold_loss


@dataclass
class TokenDrift:
    """Of n predicted tokens; equal on all ranks of the tensor group."""

    kl: Tensor  # KL(bf16 || fp8) over the vocabulary, nats
    same_top: Tensor  # bool: both rank the same id first

    @property
    def mean(self) -> float:
        return self.kl.mean().item()

    @property
    def agreement(self) -> float:
        return self.same_top.float().mean().item()


def vocabulary_shard(layout, vocabulary: int, rows: int) -> VocabularyShard:
    """This rank's part of the ``rows`` of a padded head, of which the first ``vocabulary`` are ids."""
    ids = torch.arange(rows, device=layout.device) < vocabulary
    return VocabularyShard.of(layout.tensor_rank, layout.tensor, ids, group=layout.tensor_group)


@torch.no_grad()
def token_drift(
    fp8: Tensor, bf16: Tensor, head: Tensor, targets: Tensor, shard: VocabularyShard, *, chunk_tokens: int = 512
) -> TokenDrift:
    """Final hidden states [n, H] of both, which share the bf16 LM ``head`` [v, H]: their exact KL and first choices.

    Chunk by chunk, as in the objective; logits never exist whole.  Collectives over ``shard.group``: the objective's, and an
    all-gather of two [c] rows a chunk.
    """
    count = len(targets)
    none = torch.zeros(count, device=targets.device)
    tokens = TokenBatch(targets, torch.zeros_like(targets), none, none + 1.0 / max(1, count), none)
    forward = Objective(policy=None, kl=KLTerm("forward"), chunk_tokens=chunk_tokens)
    _, said = vold_loss(fp8, head, tokens, shard, forward, teacher=TeacherStates(bf16, head))
    pairs = zip(fp8.split(chunk_tokens), bf16.split(chunk_tokens), strict=True)
    same = [_first(a, head, shard) == _first(b, head, shard) for a, b in pairs]
    return TokenDrift(said.kl, torch.cat(same))


def _first(hidden: Tensor, head: Tensor, shard: VocabularyShard) -> Tensor:
    """Id of the largest logit of each row, over all ranks of ``shard.group``."""
    group = shard.group
    logits = (hidden @ head.T).float()[:, shard.sampleable]
    if not logits.shape[1]:  # a rank that holds padding alone
        best, ids = torch.full((len(hidden),), -torch.inf, device=hidden.device), torch.zeros(len(hidden), device=hidden.device)
    else:
        best, ids = logits.max(dim=1)
    mine = torch.stack([best.double(), ids.double() + shard.start])
    if group is None or group.size() == 1:
        return mine[1]
    parts = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(parts, mine, group=group)
    parts = torch.stack(parts)  # [ranks, 2, c]
    return parts[:, 1].gather(0, parts[:, 0].argmax(dim=0, keepdim=True))[0]
