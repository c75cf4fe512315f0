"""What one step of stage 2 says about itself: one line of metrics.jsonl.

Sums are formed where the loss was (the last pipeline stage, first tensor-parallel rank of every data and context rank) and
added up over the world at the end of the step, so that every rank returns the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.data.micro_batch import MicroBatch
from vold_nemo.data.rollouts import Rollout
from vold_nemo.models.selection import Selection
from vold_nemo.models.sft import peak_bytes
from vold_nemo.objective import TokenStatistics

SUMS = (
    "tokens", "entropy", "clipped", "ratio_rollout_vs_train", "loss_policy", "loss_kl", "kl", "kl_tokens", "kl_clamped",
)  # fmt: skip


class StepMetrics:
    def __init__(self, layout, rollouts: Sequence[Rollout], selection: Selection):
        self.layout, self.rollouts, self.selection = layout, rollouts, selection
        self.counts_here = layout.is_last_stage and layout.tensor_rank == 0
        self.sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64)  # the last one: tokens the teacher scored
        self.largest = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)  # -kl_min, largest rollout ratio
        self.updates: list = []
        self.loss = 0.0

    def add(self, passed, statistics: Sequence[TokenStatistics], update, batches: Sequence[MicroBatch]) -> None:
        """One update: its pass, the statistics of its micro-batches, and what the optimizer said."""
        self.loss += passed.loss
        self.updates.append(update)
        if not self.counts_here:
            return
        for said in statistics:
            sums, extremes = said.sums(), said.extremes()
            self.sums[:-1] += torch.stack([sums[name].double().cpu() for name in SUMS])
            found = torch.stack([-extremes["kl_min"].double().cpu(), extremes["ratio_rollout_vs_train_max"].double().cpu()])
            self.largest = torch.maximum(self.largest, found)
        if self.layout.context_rank == 0:  # lengths are those of whole sequences
            self.sums[-1] += sum(sum(batch.lengths) for batch in batches if batch.scored)

    def summary(self, *, beta: float, seconds: dict[str, float], diagnosis: dict[str, Any]) -> dict[str, Any]:
        """Names as in the run-folder contract.  Two all-reduces over the world."""
        device = self.layout.device
        totals, largest = self.sums.to(device), self.largest.to(device)
        dist.all_reduce(totals)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        value = dict(zip(SUMS, totals[:-1].tolist(), strict=True))
        tokens, kl_tokens = max(1.0, value["tokens"]), max(1.0, value["kl_tokens"])
        rollouts, plan, count = self.rollouts, self.selection.plan, len(self.rollouts)
        rewards = [rollout.reward for rollout in rollouts]
        lengths = [len(rollout.response_ids) for rollout in rollouts]
        spent = sum(seconds.values())
        peak = torch.tensor(float(peak_bytes(device)), dtype=torch.float64, device=device)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        return {
            "loss": self.loss / len(self.updates),  # mean over the step's updates
            "loss_policy": value["loss_policy"] / len(self.updates),
            "loss_kl": value["loss_kl"] / len(self.updates),
            "reward_mean": sum(rewards) / count,
            "reward_zero_rate": sum(reward == 0 for reward in rewards) / count,
            **diagnosis,
            "kl_mean": value["kl"] / kl_tokens,
            "kl_min": -largest[0].item() if value["kl_tokens"] else 0.0,
            "kl_clamped_rate": value["kl_clamped"] / kl_tokens,
            "kl_unshared_rate": self._unshared_rate(),
            "masked_rate": sum(mask == 0 for mask in self.selection.kl_mask) / count,
            "teacher_tokens": int(totals[-1].item()),
            "scored_rollouts": sum(plan.scored),
            "trained_rollouts": sum(plan.trained),
            "skipped_groups": plan.skipped_groups,
            "entropy": value["entropy"] / tokens,
            "clip_rate": value["clipped"] / tokens,
            "ratio_rollout_vs_train": {"mean": value["ratio_rollout_vs_train"] / tokens, "max": largest[1].item()},
            "grad_norm": self.updates[-1].grad_norm,
            "learning_rate": self.updates[-1].learning_rate,
            "updates_skipped": sum(update.skipped for update in self.updates),
            "beta": beta,
            "response_tokens": {
                "mean": sum(lengths) / count,
                "max": max(lengths),
                "truncated_rate": sum(rollout.finish_reason == "length" for rollout in rollouts) / count,
            },
            "tokens_per_second": sum(lengths) / spent,
            "seconds": seconds,
            "memory": {"peak_bytes": int(peak.item())},
        }

    def _unshared_rate(self) -> float:
        """Share of the scored rollouts' tokens that carry no KL because the two tokenizers do not share them."""
        ids = [i for row, r in enumerate(self.rollouts) if self.selection.kl_mask[row] for i in r.response_ids]
        shared = self.selection.shared[torch.tensor(ids, dtype=torch.int64)]
        return 1.0 - shared.double().mean().item() if ids else 0.0
