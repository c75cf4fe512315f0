"""What one step of stage 2 says about itself: the numbers of metrics.jsonl that follow from the table and from the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vold_nemo.objective import TokenStatistics
from vold_nemo.step.options import StepOptions
from vold_nemo.step.plan import StepPlan
from vold_nemo.step.table import Step

SUMS = (
    "tokens", "entropy", "clipped", "ratio_rollout_vs_train", "loss_policy", "loss_kl", "kl", "kl_tokens", "kl_clamped",
)  # fmt: skip
_BOUND = 20.0  # as the correction itself: exp of more than this is past every cap


class Totals:
    """Sums and extremes over the tokens of a step, of the ranks that formed the loss.

    ``sums`` [len(SUMS)] are to be added up over the world, ``largest`` (-kl_min, largest rollout ratio) to be maximised.
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.largest = torch.tensor([-torch.inf, 0.0], dtype=torch.float64, device=device)

    def add(self, statistics: Sequence[TokenStatistics]) -> None:
        """What the micro-batches of an update said."""
        for said in statistics:
            sums, extremes = said.sums(), said.extremes()
            self.sums += torch.stack([sums[name].double() for name in SUMS])
            found = torch.stack([-extremes["kl_min"].double(), extremes["ratio_rollout_vs_train_max"].double()])
            self.largest = torch.maximum(self.largest, found)


def trainers(step: Step) -> Tensor:
    """Log-probs of the trainer under the weights that sampled: [N], NaN where nothing trained."""
    return step.column("old" if "old" in step else "trainer")


def gaps(step: Step) -> Tensor:
    """Log-probs of the trainer minus the engine's, float64 [N]."""
    return trainers(step).double() - step["engine"].double()


def mismatch(gap: Tensor) -> dict[str, float]:
    """How far the rollout engine is from the trainer: the same tokens, the same weights, two programs.

    With d_t = log π_trainer(y_t) - log π_engine(y_t) over the n tokens that are trained on (``gap`` [n], float64), before any
    weight moves, and w_t = exp(d_t):

        mean |d|, max |d|;   k3 = mean(w - 1 - d), an estimate of KL(engine || trainer), never negative;
        effective sample size = (Σ w)² / (n Σ w²), 1 where nothing has to be weighed anew.

    `objective.correction` weighs each token with min(w_t, cap); these numbers say how much it has to do.
    """
    if not len(gap):
        return {"mean": 0.0, "max": 0.0, "k3": 0.0, "effective_sample_size": 1.0}
    bounded = gap.clamp(-_BOUND, _BOUND)
    w, n = bounded.exp(), len(gap)
    size = w.sum().square() / (n * w.square().sum())
    found = torch.stack([gap.abs().mean(), gap.abs().max(), (bounded.expm1() - bounded).mean(), size])
    return dict(zip(("mean", "max", "k3", "effective_sample_size"), found.tolist(), strict=True))


def step_metrics(step: Step, plan: StepPlan, totals: Totals, options: StepOptions) -> dict[str, Any]:
    """Numbers of a step whose columns are whole and whose totals are the world's; sums of losses are over its updates."""
    value = dict(zip(SUMS, totals.sums.tolist(), strict=True))
    kl_least, ratio_most = totals.largest.tolist()
    tokens, kl_tokens, count = max(1.0, value["tokens"]), max(1.0, value["kl_tokens"]), len(step)
    lengths, gap = step.responses.lengths, gaps(step)
    scored, trained = step["scored"], step["trained"]
    asked = (step["kl_mask"] != 0)[step.of_each_token()]
    unshared = ~options.shared.to(step.device)[step.responses.flat.long()]
    return {
        "loss_policy": value["loss_policy"] / len(plan.updates),
        "loss_kl": value["loss_kl"] / len(plan.updates),
        "reward_mean": step["reward"].mean().item(),
        "reward_zero_rate": (step["reward"] == 0).double().mean().item(),
        "kl_mean": value["kl"] / kl_tokens,
        "kl_min": -kl_least if value["kl_tokens"] else 0.0,
        "kl_clamped_rate": value["kl_clamped"] / kl_tokens,
        # of the tokens that the mask leaves a KL, those that have none because the tokenizers do not share them
        "kl_unshared_rate": unshared[asked].double().mean().item() if asked.any() else 0.0,
        "masked_rate": (step["kl_mask"] == 0).double().mean().item(),
        "teacher_tokens": int(step.lengths[(scored & trained).cpu()].sum()),
        "scored_rollouts": int(scored.sum()),
        "trained_rollouts": int(trained.sum()),
        "skipped_groups": plan.skipped_groups,
        "micro_batches": plan.micro_batches,
        "entropy": value["entropy"] / tokens,
        "clip_rate": value["clipped"] / tokens,
        "ratio_rollout_vs_train": {"mean": value["ratio_rollout_vs_train"] / tokens, "max": ratio_most},
        "mismatch": mismatch(gap[~gap.isnan()]),
        "response_tokens": {
            "mean": lengths.sum().item() / count,
            "max": int(lengths.max()),
            "truncated_rate": step.column("truncated").double().mean().item(),
        },
    }
