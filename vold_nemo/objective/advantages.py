"""Group-relative advantages (eq. 5): what a rollout is worth beside its siblings."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor, kind: str = "standardised", correction: int = 1, delta: float = 1e-4
) -> Tensor:
    """Advantages [B, K] of K rollouts for each of B prompts.

    ``standardised`` (GRPO): A = (r - mean) / (std + δ), std with n - ``correction`` in the denominator.
    ``centred`` (Dr. GRPO): A = r - mean.
    A group of one, or of equal rewards, has advantage 0.

    Raises:
        ValueError: rewards that are not [B, K], an unknown kind, a correction other than 0 or 1, δ < 0.
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [prompts, rollouts], not {tuple(rewards.shape)}")
    if kind not in ("standardised", "centred"):
        raise ValueError(f"objective.policy.advantage = {kind!r}; allowed: standardised | centred")
    if correction not in (0, 1):
        raise ValueError(f"objective.policy.std_correction = {correction!r}; allowed: 0 (n) | 1 (n-1)")
    if delta < 0:
        raise ValueError(f"objective.policy.std_delta = {delta!r}; allowed: 0 or more")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # exactly equal rewards: rounding in the mean must not be blown up by a small δ
    centred = centred.masked_fill((rewards == rewards[:, :1]).all(dim=1, keepdim=True), 0.0)
    if kind == "centred":
        return centred
    freedom = max(rewards.shape[1] - correction, 1)
    std = (centred.square().sum(dim=1, keepdim=True) / freedom).sqrt()
    return torch.where(centred == 0, 0.0, centred / (std + delta))


def penalised_rewards(rewards: Tensor, k1_sums: Tensor, beta: float, kl_mask: Tensor | None = None) -> Tensor:
    """Rewards with the KL inside, for ``k1_reward`` placed *before* group standardisation: r - β·m·Σ_t k1_t.

    Args:
        rewards, k1_sums: [B, K]; ``k1_sums`` adds up log p(y_t) - log q(y_t) over a rollout (``token_logprobs`` of both models
            with ``shard.over_shared``).
        kl_mask: [B, K] weights of `masks.py`.
    """
    penalty = beta * k1_sums if kl_mask is None else beta * kl_mask * torch.where(kl_mask == 0, 0.0, k1_sums)
    return rewards - penalty
