"""What one step of stage 2 says about itself: one line of metrics.jsonl.

Sums are formed where the loss was (the last pipeline stage, first tensor-parallel rank of every data and context rank) and
added up over the world at the end of the step, so that every rank returns the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.data.micro_batch import MicroBatch
from vold_nemo.data.rollouts import Fate, Rollout, TokenRecord
from vold_nemo.models.rank_checks import whole_responses
from vold_nemo.models.selection import Selection
from vold_nemo.models.sft import peak_bytes
from vold_nemo.objective import TokenStatistics
from vold_nemo.rollout.mismatch import Mismatch

SUMS = (
    "tokens", "entropy", "clipped", "ratio_rollout_vs_train", "loss_policy", "loss_kl", "kl", "kl_tokens", "kl_clamped",
)  # fmt: skip


class StepMetrics:
    """``recorded``: also keep what each token said, for :meth:`fates`."""

    def __init__(self, layout, rollouts: Sequence[Rollout], selection: Selection, *, recorded: bool = False):
        self.layout, self.rollouts, self.selection, self.recorded = layout, rollouts, selection, recorded
        self.counts_here = layout.is_last_stage and layout.tensor_rank == 0
        self.sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64)  # the last one: tokens the teacher scored
        self.largest = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)  # -kl_min, largest rollout ratio
        self.mismatch = Mismatch()
        self.tokens: dict[int, TokenRecord] = {}  # by rollout, of this rank
        self.updates: list = []
        self.loss = 0.0

    def add(
        self, passed, statistics: Sequence[TokenStatistics], update, batches: Sequence[MicroBatch],
        gaps: Mapping[int, list[float]],
    ) -> None:  # fmt: skip
        """One update: its pass, the statistics of its micro-batches, what the optimizer said, and engine against trainer.

        ``gaps``: log-probs of the trainer minus the engine's, by rollout (`MegatronVOLDModel.probe`).
        """
        self.loss += passed.loss
        self.updates.append(update)
        if not self.counts_here:
            return
        for said in statistics:
            sums, extremes = said.sums(), said.extremes()
            self.sums[:-1] += torch.stack([sums[name].double().cpu() for name in SUMS])
            found = torch.stack([-extremes["kl_min"].double().cpu(), extremes["ratio_rollout_vs_train_max"].double().cpu()])
            self.largest = torch.maximum(self.largest, found)
        if self.layout.context_rank == 0:  # lengths and gaps are those of whole sequences
            self.sums[-1] += sum(sum(batch.lengths) for batch in batches if batch.scored)
            for row in gaps:
                self.mismatch.add(gaps[row])
        if self.recorded:
            kl, carry = (
                whole_responses(
                    {row: values for batch, said in zip(batches, statistics, strict=True)
                     for row, values in batch.by_response(getattr(said, name).float().cpu()).items()},
                    self.layout,
                )
                for name in ("kl", "kl_active")
            )  # fmt: skip
            for batch in batches:
                for row in batch.rows:
                    values = [value if counts else None for value, counts in zip(kl[row], carry[row], strict=True)]
                    advantage = self.selection.advantages[row]
                    self.tokens[row] = TokenRecord(gaps[row], values if batch.scored else None, advantage)

    def fates(self) -> list[Fate] | None:
        """What became of each rollout, on rank 0; None elsewhere.  One object gather over the world."""
        everywhere: list = [None] * self.layout.world if self.layout.rank == 0 else None
        dist.gather_object(self.tokens, everywhere, dst=0)
        if everywhere is None:
            return None
        plan, tokens = self.selection.plan, {row: record for part in everywhere for row, record in part.items()}
        return [Fate(plan.scored[row], plan.trained[row], tokens.get(row)) for row in range(len(self.rollouts))]

    def summary(self, *, beta: float, seconds: dict[str, float], diagnosis: dict[str, Any],
                held: dict[str, dict[str, int]]) -> dict[str, Any]:
        """Names as in the run-folder contract.  Three all-reduces over the world.

        ``held``: bytes on the device by phase and holder, of this rank (`Handover.held`).
        """
        device = self.layout.device
        totals = torch.cat([self.sums, self.mismatch.sums]).to(device)
        largest = torch.cat([self.largest, torch.tensor([self.mismatch.largest], dtype=torch.float64)]).to(device)
        dist.all_reduce(totals)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        totals, gaps = totals.split([len(self.sums), len(self.mismatch.sums)])
        value = dict(zip(SUMS, totals[:-1].tolist(), strict=True))
        tokens, kl_tokens = max(1.0, value["tokens"]), max(1.0, value["kl_tokens"])
        rollouts, plan, count = self.rollouts, self.selection.plan, len(self.rollouts)
        rewards = [rollout.reward for rollout in rollouts]
        lengths = [len(rollout.response_ids) for rollout in rollouts]
        spent = sum(seconds.values())
        places = [(phase, holder) for phase, holders in held.items() for holder in holders]  # the same on every rank
        most = [peak_bytes(device), *(held[phase][holder] for phase, holder in places)]
        most = torch.tensor(most, dtype=torch.float64, device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        peak, *most = (int(size) for size in most.tolist())
        by_phase: dict[str, dict[str, int]] = {}
        for (phase, holder), size in zip(places, most, strict=True):
            by_phase.setdefault(phase, {})[holder] = size
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
            "mismatch": Mismatch.summary(gaps, largest[2].item()),
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
            "memory": {"peak_bytes": peak, "held": by_phase},  # each the largest of any rank
        }

    def _unshared_rate(self) -> float:
        """Share of the scored rollouts' tokens that carry no KL because the two tokenizers do not share them."""
        ids = [i for row, r in enumerate(self.rollouts) if self.selection.kl_mask[row] for i in r.response_ids]
        shared = self.selection.shared[torch.tensor(ids, dtype=torch.int64)]
        return 1.0 - shared.double().mean().item() if ids else 0.0
