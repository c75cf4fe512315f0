"""Which rollouts, and which of their tokens, carry the KL term (eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_masks(rewards: Tensor, kind: str = "reward", perplexity: Tensor | None = None) -> Tensor:
    """Weight in [0, 1] of each rollout's KL, [B, K].

    ``none``: 1 everywhere.  ``reward`` (the paper): 1 - r.  ``all_wrong_group``: 1 where every rollout of the group has r = 0.
    ``perplexity``: 1 - r, softened by the teacher's perplexity over the wrong rollouts of the group: w_i ∝ 1 / ppl_i, scaled so
    that the largest weight in the group is 1 (after SCOPE, arXiv 2604.10688: where the teacher itself is lost it is not
    followed).

    Args:
        rewards: [B, K] in [0, 1].
        perplexity: [B, K], exp of the teacher's mean NLL per response token; read only where r < 1.

    Raises:
        ValueError: an unknown kind, rewards outside [0, 1], or a missing or non-positive perplexity where it is needed.
    """
    if bool(((rewards < 0) | (rewards > 1) | rewards.isnan()).any()):
        raise ValueError("rewards must lie in [0, 1] for a KL mask")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if kind == "none":
        return torch.ones_like(rewards)
    if kind == "reward":
        return 1.0 - rewards
    if kind == "all_wrong_group":
        return (rewards == 0).all(dim=1, keepdim=True).to(rewards.dtype).expand_as(rewards).clone()
    if kind == "perplexity":
        wrong = rewards < 1
        if perplexity is None or bool((~(perplexity > 0) | perplexity.isinf())[wrong].any()):
            raise ValueError("mask perplexity needs the teacher's perplexity, finite and positive, of every wrong rollout")
        nll = torch.where(wrong, perplexity.to(rewards.dtype), 1.0).log().masked_fill(~wrong, torch.inf)
        return torch.where(wrong, (1.0 - rewards) * perplexity_weights(nll), 0.0)
    raise ValueError(f"objective.kl.mask = {kind!r}; allowed: none | reward | all_wrong_group | perplexity")


def perplexity_weights(nll: Tensor) -> Tensor:
    """Weights [..., K] ∝ 1 / ppl_i = e^(-nll_i) of the wrong rollouts of a group, the largest 1.

    Args:
        nll: the teacher's mean NLL per token; +inf for a rollout that has no part in the comparison.
    """
    return (nll.amin(dim=-1, keepdim=True) - nll).exp()


def kl_token_mask(
    targets: Tensor, response: Tensor, shared: Tensor, *, mask_one_sided: bool = True, mask_eos: bool = False,
    eos_ids: tuple[int, ...] = (),
) -> Tensor:  # fmt: skip
    """Tokens of the response that may carry a KL: bool, like ``targets``.

    Sampled ids outside the shared set carry none unless ``mask_one_sided`` is off; the end-of-sequence ids carry none if
    ``mask_eos``.  This is the mask the weights of `weights.py` are counted with, so that a token without a KL is not in an
    average over KL tokens either.

    Args:
        shared: bool [V] over all ids.
    """
    inside = (targets >= 0) & (targets < len(shared))
    mask = response & inside
    if mask_one_sided:
        mask = mask & shared[targets.clamp(0, len(shared) - 1)]
    if mask_eos and eos_ids:
        mask = mask & ~torch.isin(targets, torch.tensor(eos_ids, device=targets.device, dtype=targets.dtype))
    return mask
