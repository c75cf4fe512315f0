"""Which rollouts carry a signal, and how strong: advantages, KL masks, and what the teacher's log-probs change in them.

Pure functions of columns and options.  They write columns of rollouts and move none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vold_nemo.objective import (
    clamped_k1,
    group_advantages,
    kl_masks,
    kl_token_mask,
    penalised_rewards,
    perplexity_weights,
)
from vold_nemo.step.options import StepOptions
from vold_nemo.step.table import Step


def select(step: Step, options: StepOptions, beta: float) -> None:
    """Write ``carries``, ``advantage`` and ``kl_mask`` of judged rollouts: what :func:`plan.make_plan` goes by.

    Where ``beta`` is 0 (``objective.kl.beta.off_step``) nothing is skipped for the KL's sake and nobody asks the teacher.
    """
    step["carries"] = may_carry_kl(step, options)
    step["advantage"], step["kl_mask"] = signals(step, options, beta)


def may_carry_kl(step: Step, options: StepOptions) -> Tensor:
    """The one place where tokens of the KL are chosen: bool [N].

    Sampled ids that both tokenizers share; others, and the end of sequence, by option.
    """
    ids = step.responses.flat.long()
    return kl_token_mask(
        ids, torch.ones_like(ids, dtype=torch.bool), options.shared.to(ids.device), mask_one_sided=options.mask_one_sided,
        mask_eos=options.mask_eos, eos_ids=options.eos_ids,
    )  # fmt: skip


def signals(step: Step, options: StepOptions, beta: float) -> tuple[Tensor, Tensor]:
    """Advantage and KL mask of each rollout, [R]; where both are 0 it cannot move a gradient.

    A group's mean and deviation are those of all its rollouts; one that was cut off for length has no advantage under
    ``overlong=mask_policy``, and no KL either under ``mask_all``.  Averages go on counting it.
    """
    rewards = step.by_group("reward")
    advantages = _advantages(rewards, options).flatten()
    kl_mask = torch.zeros_like(advantages)
    if options.kl and (beta or not options.skip):
        kind = "reward" if options.mask == "perplexity" else options.mask  # who is scored; `soften` comes with the scores
        kl_mask = kl_masks(rewards, kind).flatten()
    advantages = advantages.masked_fill(left_out(step, options), 0.0)
    if options.overlong == "mask_all":
        kl_mask = kl_mask.masked_fill(step.column("truncated"), 0.0)
    return advantages, kl_mask


def left_out(step: Step, options: StepOptions) -> Tensor:
    """Rollouts without an advantage, whatever their reward: bool [R]."""
    return step.column("truncated") & (options.overlong != "keep")


def silent_groups(step: Step, options: StepOptions, beta: float) -> list[int]:
    """Groups that cannot move a gradient: under the paper's objective those that are all right, as all-wrong ones have a KL."""
    advantages, kl_mask = signals(step, options, beta)
    live = (options.policy & (advantages != 0)) | (kl_mask != 0)
    return (~live.view(-1, step.samples).any(dim=1)).nonzero().flatten().tolist()


def soften(step: Step, nll: Tensor, known: Tensor) -> None:
    """``mask=perplexity``: follow the teacher less where it is itself lost (`objective.perplexity_weights`).

    Args:
        nll: the teacher's NLL summed over each response, [R].
        known: bool [R], the scored rollouts of this data rank, which holds groups whole; no other row is read or written.
    """
    tokens = step.sum_by_rollout(step["carries"])
    for group in _groups(step, known):
        rows = group[known[group] & (tokens[group] > 0)]  # without a token to follow there is nothing to compare
        if len(rows):
            step["kl_weight"][rows] *= perplexity_weights(nll[rows] / tokens[rows])


def penalise(step: Step, k1: Tensor, known: Tensor, options: StepOptions, factor: float) -> None:
    """The KL inside the rewards: advantages of r_i - ``factor``·w_i·Σ_t k1_t, w_i the rollout's KL weight.

    With ``factor`` = β times the N rollouts of the update, the mean penalty is the KL term that would stand in the loss, with
    its mask and its average.

    Args:
        k1: the bounded log p(y_t) - log q(y_t) summed over each response, [R].
        known: as in :func:`soften`.
    """
    for group in _groups(step, known):
        penalty = torch.where(known[group], k1[group], 0.0)
        shaped = penalised_rewards(step["reward"][group], penalty, factor, step["kl_weight"][group])
        advantages = _advantages(shaped[None], options)[0]
        step["advantage"][group] = advantages.masked_fill(left_out(step, options)[group], 0.0)


def bounded_k1(step: Step, options: StepOptions) -> tuple[Tensor, Tensor]:
    """k1_t = log p(y_t) - log q(y_t) of each token within ±``clamp``, and whether it was beyond; 0 where none is carried."""
    return clamped_k1(step["student_shared"] - step["teacher"], options.clamp)


def _advantages(rewards: Tensor, options: StepOptions) -> Tensor:
    return group_advantages(rewards, options.advantage, options.std_correction, options.std_delta)


def _groups(step: Step, known: Tensor) -> Iterator[Tensor]:
    """Rows of each group with a rollout in ``known``."""
    for rows in torch.arange(len(step), device=step.device).view(-1, step.samples):
        if known[rows].any():
            yield rows
