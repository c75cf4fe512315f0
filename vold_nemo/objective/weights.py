"""Global weights of tokens: all normalisation of the loss, decided once for the world, before any micro-batch is cut.

A loss is Σ_t w_t·L_t with w counted over *all sampled rollouts*, whether they are trained on or skipped: then no layout, no
micro-batching and no skipping changes a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

AVERAGES = ("token", "sequence", "constant")


def sequence_weights(counts: Sequence[int], average: str, constant: float | None = None) -> list[float]:
    """Weight of one token in each of the N sampled rollouts, which have ``counts`` counting tokens.

    ``token``: 1 / Σ counts (DAPO).  ``sequence``: 1 / (N·count) (GRPO; the mean over rollouts of the mean over tokens).
    ``constant``: 1 / (N·constant) (Dr. GRPO: the constant is the largest response length allowed).
    A rollout without counting tokens counts in N and weighs nothing.

    Raises:
        ValueError: an unknown average, a missing constant, a negative count.
    """
    if average not in AVERAGES:
        raise ValueError(f"objective average = {average!r}; allowed: {' | '.join(AVERAGES)}")
    if any(count < 0 for count in counts):
        raise ValueError("a rollout cannot have a negative number of tokens")
    if average == "constant":
        if constant is None or constant <= 0:
            raise ValueError(f"average constant needs the largest response length, a positive number, not {constant!r}")
        return [1.0 / (len(counts) * constant)] * len(counts)
    if average == "token":
        return [1.0 / max(1, sum(counts))] * len(counts)
    return [1.0 / (len(counts) * count) if count else 0.0 for count in counts]


def kl_sequence_weights(
    counts: Sequence[int], masks: Sequence[float], beta: float, average: str, constant: float | None = None
) -> list[float]:
    """β·m_i times :func:`sequence_weights`: the weight of a KL token in each rollout.

    The denominators count masked rollouts too (eq. 6 averages (1 - r)·KL over all rollouts, not over the wrong ones).

    Args:
        counts: tokens of each rollout that may carry a KL (`masks.kl_token_mask`).
        masks: weight of each rollout (`masks.kl_masks`).
    """
    if len(counts) != len(masks):
        raise ValueError(f"{len(counts)} rollouts but {len(masks)} masks")
    weights = sequence_weights(counts, average, constant)
    return [beta * mask * weight for mask, weight in zip(masks, weights, strict=True)]
