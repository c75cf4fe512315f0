"""The policy-gradient term: clipped surrogates and the correction for the rollout engine's log-probs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_LOG_RATIO = 20.0  # e^20 is past every clip; a bounded exponent keeps 0 x ratio from being NaN


def _check(key: str, good: bool, value: object, allowed: str) -> None:
    if not good:
        raise ValueError(f"{key} = {value!r}; allowed: {allowed}")


@dataclass(frozen=True)
class PolicyTerm:
    """Which surrogate.

    ``grpo`` clips the ratio of each token, ``gspo`` (arXiv 2507.18071) the geometric mean of a sequence's.  Dr. GRPO is
    ``grpo`` with centred advantages and weights averaged by a constant, DAPO is ``grpo`` with weights averaged over tokens:
    advantages and weights arrive ready-made (`advantages.py`, `weights.py`).

    Args:
        clip_low, clip_high: the ratio is held in [1 - clip_low, 1 + clip_high].
        dual_clip: c > 1 bounds the loss of a token with negative advantage by c·|A|.
    """

    loss: str = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.3
    dual_clip: float | None = None

    def __post_init__(self):
        key = "objective.policy"
        _check(f"{key}.loss", self.loss in ("grpo", "gspo"), self.loss, "grpo | gspo")
        _check(f"{key}.clip_low", 0.0 <= self.clip_low <= 1.0, self.clip_low, "0 to 1")
        _check(f"{key}.clip_high", self.clip_high >= 0.0, self.clip_high, "0 or more")
        _check(f"{key}.dual_clip", self.dual_clip is None or self.dual_clip > 1.0, self.dual_clip, "above 1, or null")


@dataclass(frozen=True)
class CorrectionTerm:
    """Importance weight exp(log π_trainer - log π_engine) of what the engine sampled.

    ``token``: each token's, truncated at ``cap``.  ``sequence``: the product over the response, truncated at ``cap``.
    ``sequence_mask``: the product, and 0 where it exceeds ``cap``.  ``on_kl`` applies it to the KL term as well.
    """

    mode: str = "none"
    cap: float = 2.0
    on_kl: bool = True

    def __post_init__(self):
        modes = ("none", "token", "sequence", "sequence_mask")
        _check("objective.correction.mode", self.mode in modes, self.mode, " | ".join(modes))
        _check("objective.correction.cap", self.cap > 0, self.cap, "a positive number")

    @property
    def whole_sequence(self) -> bool:
        return self.mode in ("sequence", "sequence_mask")

    def weight(self, log_gap: Tensor) -> Tensor:
        """Weights from log π_trainer - log π_engine, per token or summed over its sequence."""
        weight = log_gap.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
        if self.mode == "sequence_mask":
            return weight.masked_fill(weight > self.cap, 0.0)
        return weight.clamp(max=self.cap)


@dataclass
class Surrogate:
    loss: Tensor
    slope: Tensor  # ∂loss/∂log_ratio
    clipped: Tensor  # bool
    ratio: Tensor


def surrogate(term: PolicyTerm | None, log_ratio: Tensor, advantage: Tensor) -> Surrogate:
    """-min(ρA, clip(ρ, 1-ε_low, 1+ε_high)A), at most c|A| under a dual clip; ``None`` leaves -ρA (eq. 5's inner term).

    It is homogeneous in A, so weights and importance corrections may already be inside ``advantage``.  A log-ratio beyond
    ±20 counts as ±20 and has no slope.
    """
    ratio = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    loss = -ratio * advantage
    slope = loss.masked_fill(log_ratio.abs() > _MAX_LOG_RATIO, 0.0)
    clipped = torch.zeros_like(loss, dtype=torch.bool)
    if term is None:
        return Surrogate(loss, slope, clipped, ratio)
    bounded = -ratio.clamp(1.0 - term.clip_low, 1.0 + term.clip_high) * advantage
    clipped = bounded > loss
    loss = torch.maximum(loss, bounded)
    if term.dual_clip is not None:
        ceiling = -term.dual_clip * advantage
        hit = (advantage < 0) & (loss > ceiling)
        loss, clipped = torch.where(hit, ceiling, loss), clipped | hit
    return Surrogate(loss, slope.masked_fill(clipped, 0.0), clipped, ratio)
