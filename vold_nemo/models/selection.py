"""From rewards to the step plan: advantages, KL masks, lengths, and one plan that every rank follows.

The plan is made before the teacher has spoken.  Two options let its log-probs change weights afterwards, within a group, which
one data rank holds whole: :meth:`Selection.soften` and :meth:`Selection.penalise`.  Neither moves a rollout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.config import Config, KLConfig, PolicyConfig
from vold_nemo.data.rollouts import Rollout
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.objective import group_advantages, kl_masks, kl_token_mask, penalised_rewards, perplexity_weights
from vold_nemo.planning.step_plan import StepPlan, make_step_plan


def shapes_rewards(kl: KLConfig) -> bool:
    """Whether the KL enters the rewards before they are standardised, and not the loss."""
    return kl.enabled and kl.estimator == "k1_reward" and kl.reward_placement == "before"


@dataclass
class Selection:
    """The plan of a step, and what its weights mean token by token."""

    plan: StepPlan
    rollouts: Sequence[Rollout]
    rewards: Tensor  # [B, K]
    policy: PolicyConfig
    advantages: list[float]  # per rollout
    kl_mask: list[float]  # per rollout
    kl_weight: list[float]  # per rollout: the plan's, softened where the mask asks for it
    cut: list[bool]  # per rollout: without an advantage, whatever its reward (``rollout.overlong``)
    shared: Tensor  # [V] bool
    mask_one_sided: bool
    mask_eos: bool
    eos_ids: tuple[int, ...]

    def kl_tokens(self, targets: Tensor, response: Tensor) -> Tensor:
        """Response tokens that may carry a KL: sampled ids both tokenizers share; others and the end of sequence by option."""
        return kl_token_mask(
            targets, response, self.shared.to(targets.device), mask_one_sided=self.mask_one_sided, mask_eos=self.mask_eos,
            eos_ids=self.eos_ids,
        )  # fmt: skip

    def kl_length(self, row: int) -> int:
        """How many tokens of rollout ``row`` may carry a KL."""
        ids = torch.tensor(self.rollouts[row].response_ids, dtype=torch.int64)
        return int(self.kl_tokens(ids, torch.ones_like(ids, dtype=torch.bool)).sum())

    def soften(self, nll: Mapping[int, float]) -> None:
        """``objective.kl.mask=perplexity``: follow the teacher less where it is itself lost (see `objective.kl_masks`).

        Args:
            nll: the teacher's mean NLL per KL token of every scored rollout on this data rank.
        """
        for group in self._groups(nll):
            known = [row for row in group if row in nll]
            factors = perplexity_weights(torch.tensor([nll[row] for row in known], dtype=torch.float64))
            for row, factor in zip(known, factors.tolist(), strict=True):
                self.kl_weight[row] *= factor

    def penalise(self, k1: Mapping[int, float], beta: float, sampled: int) -> None:
        """``objective.kl.reward_placement=before``: advantages of r_i - β·N·w_i·Σ_t k1_t, w_i the rollout's KL weight.

        The mean penalty over the N = ``sampled`` rollouts of the update is the KL term that would stand in the loss, with its
        mask and its average.

        Args:
            k1: Σ_t log p(y_t) - log q(y_t) of every scored rollout on this data rank.
        """
        for group in self._groups(k1):
            rewards = self.rewards.flatten()[group.start : group.stop]
            sums = torch.tensor([k1.get(row, 0.0) for row in group], dtype=torch.float64)
            weight = torch.tensor([sampled * self.kl_weight[row] for row in group], dtype=torch.float64)
            shaped = penalised_rewards(rewards, sums, beta, weight)
            policy = self.policy
            advantages = group_advantages(shaped[None], policy.advantage, policy.std_correction, policy.std_delta)
            for row, advantage in zip(group, advantages[0].tolist(), strict=True):
                self.advantages[row] = 0.0 if self.cut[row] else advantage

    def _groups(self, rows: Mapping[int, float]) -> Iterator[range]:
        samples = self.rewards.shape[1]
        for group in sorted({row // samples for row in rows}):
            yield range(group * samples, (group + 1) * samples)


def signals(
    rollouts: Sequence[Rollout], grid: Tensor, config: Config, beta: float
) -> tuple[list[float], list[float]]:
    """Advantage and KL mask of each rollout; where both are 0 it cannot move a gradient.

    ``grid``: rewards [B, K].  A group's mean and deviation are those of all its rollouts; one that was cut off for length has
    no advantage under ``rollout.overlong=mask_policy``, and no KL either under ``mask_all``.  Averages go on counting it.
    """
    policy, kl, overlong = config.objective.policy, config.objective.kl, config.rollout.overlong
    advantages = group_advantages(grid, policy.advantage, policy.std_correction, policy.std_delta).flatten().tolist()
    kl_mask = [0.0] * len(rollouts)
    if kl.enabled and (beta or not config.objective.skip):
        kind = "reward" if kl.mask == "perplexity" else kl.mask  # who is scored; `soften` comes when the teacher has spoken
        kl_mask = kl_masks(grid, kind).flatten().tolist()
    for row, rollout in enumerate(rollouts):
        if rollout.finish_reason == "length" and overlong != "keep":
            advantages[row] = 0.0
            kl_mask[row] = 0.0 if overlong == "mask_all" else kl_mask[row]
    return advantages, kl_mask


def silent_groups(rollouts: Sequence[Rollout], config: Config, beta: float) -> list[int]:
    """Groups that cannot move a gradient: under the paper's objective those that are all right, as all-wrong ones have a KL."""
    samples = config.rollout.samples_per_prompt
    grid = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64).view(-1, samples)
    advantages, kl_mask = signals(rollouts, grid, config, beta)
    live = [(config.objective.policy.enabled and a != 0) or m != 0 for a, m in zip(advantages, kl_mask, strict=True)]
    return [group for group in range(len(grid)) if not any(live[group * samples : (group + 1) * samples])]


def select(
    rollouts: Sequence[Rollout], config: Config, contract: VocabularyContract, layout,
    *, eos_ids: tuple[int, ...], teacher_cost: Sequence[float], beta: float, pad_multiple: int,
) -> Selection:  # fmt: skip
    """Plan the step on rank 0 and broadcast it.

    ``rollouts``, judged, come group after group, K a prompt.  ``teacher_cost``: each teacher's forward of a token in units of
    the student's forward and backward.  Where ``beta`` is 0 (``objective.kl.beta.off_step``) no rollout goes to the teacher.
    ``pad_multiple``: of every padded length (sequence parallelism, FP8).  One object broadcast over the world.
    """
    objective, samples = config.objective, config.rollout.samples_per_prompt
    grid = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64).view(-1, samples)
    policy, kl = objective.policy, objective.kl
    cut = [config.rollout.overlong != "keep" and rollout.finish_reason == "length" for rollout in rollouts]
    advantages, kl_mask = signals(rollouts, grid, config, beta)
    selection = Selection(
        None, rollouts, grid, policy, advantages, kl_mask, [], cut, contract.shared,  # plan follows
        kl.mask_one_sided, kl.mask_eos, eos_ids,
    )  # fmt: skip
    plan = None
    if layout.rank == 0:
        groups = [range(start, start + samples) for start in range(0, len(rollouts), samples)]
        kl_lengths = [selection.kl_length(row) for row in range(len(rollouts))]
        moves = list(advantages)
        if shapes_rewards(kl):  # a penalty on one rollout gives its whole group advantages
            for group in groups:
                if any(kl_mask[row] and kl_lengths[row] for row in group):
                    moves[group.start : group.stop] = [float(not cut[row]) for row in group]
        plan = make_step_plan(
            groups,
            lengths=[len(rollout.ids) for rollout in rollouts],
            response_lengths=[len(rollout.response_ids) for rollout in rollouts], kl_lengths=kl_lengths,
            advantages=moves, kl_mask=kl_mask, policy_average=policy.average, kl_average=kl.average,
            max_tokens=config.rollout.max_tokens, data_ranks=layout.data, updates=config.vold.updates_per_step,
            micro_batch_tokens=config.vold.micro_batch_tokens, pad_multiple=pad_multiple,
            teachers=[rollout.teacher for rollout in rollouts], teacher_cost=teacher_cost,
            expert_parallel=config.parallel.expert, policy=policy.enabled, skip=objective.skip,
        )  # fmt: skip
    agreed = [plan]
    dist.broadcast_object_list(agreed, src=0)
    selection.plan, selection.kl_weight = agreed[0], list(agreed[0].kl_weight)
    return selection
