"""Log-probs without a gradient, and the plain negative log-likelihood of stage 1 (eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from vold_nemo.objective.counting import count, places
from vold_nemo.objective.head import working_type
from vold_nemo.objective.vocabulary import VocabularyShard
from vold_nemo.objective.walk import Walk, formed_in_forward, refuse_unsampleable


@torch.no_grad()
def token_logprobs(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    shard: VocabularyShard,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 512,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """log π(target) and entropy, [n] each, of softmax(hidden · headᵀ / temperature) over the sampleable ids.

    Use ``shard.over_shared`` for log-probs as the KL sees them.  With ``mask`` (bool [n]) other tokens are never read and
    come back as 0.

    Collectives: one MAX and one SUM all-reduce of a few [c] rows per chunk, over ``shard.group``, on whose ranks all results
    are equal.

    Raises:
        ValueError: shapes that do not fit, or a target that is not a sampleable id.
    """
    walk = Walk(hidden, head, targets, shard, temperature=temperature, chunk_tokens=chunk_tokens)
    logprobs, entropy = (hidden.new_zeros(len(targets), dtype=walk.dtype) for _ in range(2))
    chosen = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    wrong = chosen & ~shard.can_sample(targets)
    told = count(chosen=chosen, wrong=wrong)
    if told["wrong"]:
        refuse_unsampleable(targets, wrong)
    for chunk in walk.chunks(places(chosen, told["chosen"])):
        logprobs[chunk.rows] = chunk.summary.logprob
        entropy[chunk.rows] = chunk.summary.entropy
    return logprobs, entropy


def nll_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weight: Tensor,
    shard: VocabularyShard,
    *,
    chunk_tokens: int = 512,
    head_gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. 4: Σ_t weight_t · -log π(target_t), and the detached per-token NLL [n] (0 where the weight is 0).

    Tokens of weight 0 are never read: their targets, hidden states and gradients may be anything and stay exactly 0.
    Gradient contract, ``head_gradient`` and collectives as :func:`loss.vold_loss`; one pass, no logits kept.

    Raises:
        ValueError: shapes that do not fit, a weight that is not finite, or a weighted target that cannot be sampled.
    """
    if weight.shape != targets.shape:
        raise ValueError(f"weight {tuple(weight.shape)} must be {tuple(targets.shape)}, one per target")
    weights = weight.detach().to(working_type(hidden))
    wrong = (weights != 0) & ~shard.can_sample(targets)
    told = count(infinite=~weights.isfinite(), chosen=weights != 0, wrong=wrong)
    if told["infinite"]:
        raise ValueError("a token weight is not finite")
    if told["wrong"]:
        refuse_unsampleable(targets, wrong)
    nll: Tensor  # set by `run`

    def run(need_hidden: bool, need_head: bool):
        nonlocal nll
        walk = Walk(hidden.detach(), head.detach(), targets, shard, temperature=1.0, chunk_tokens=chunk_tokens)
        walk.form_gradients(need_hidden, need_head, head_gradient)
        nll = torch.zeros_like(weights)
        for chunk in walk.chunks(places(weights != 0, told["chosen"])):
            nll[chunk.rows] = -chunk.summary.logprob
            walk.backward(chunk, -weights[chunk.rows])
        return (nll * weights).sum(), *walk.gradients()

    return formed_in_forward(hidden, head, run), nll
