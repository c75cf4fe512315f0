"""Dynamic sampling, VOLD's way: groups that cannot move a gradient make room for other prompts.

DAPO drops every group whose rewards are all equal.  Here an all-wrong group has no advantage but the whole KL to the teacher:
only a group without *any* signal goes, and under the paper's objective that is one that is all right.

What comes instead hangs on nothing but (run seed, step, round) and on which groups went: a resumed run refills as the
undisturbed one did, on any layout.  The order of the epochs is not touched; a prompt that was drawn as a refill comes again in
its turn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from vold_nemo.config import Config
from vold_nemo.data.rollouts import Rollout
from vold_nemo.models.clock import PhaseClock
from vold_nemo.models.selection import silent_groups


def substitutes(size: int, taken: Sequence[int], count: int, name: str) -> list[int]:
    """Up to ``count`` different indices below ``size`` that are not in ``taken``, drawn from the string ``name`` alone."""
    known = set(taken)
    drawn = random.Random(name).sample(range(size), min(size, count + len(known)))
    return [index for index in drawn if index not in known][:count]


def refill(
    step: int, rollouts: list[Rollout], sampler, config: Config, beta: float, clock: PhaseClock
) -> list[Rollout]:
    """``rollouts``, judged, with groups without signal replaced, at most ``rollout.refill_rounds`` times.

    A step keeps its number of groups: where no round is left, or no prompt, the last ones stay, and cost no training token.
    ``sampler.refilled`` says what happened (`metrics.jsonl: refill`); rewards in it are those before, which alone are a fair
    sample of what the student can do.  The same on every rank; collective over the world.
    """
    samples, rounds = config.rollout.samples_per_prompt, config.rollout.refill_rounds
    sampler.refilled = {}
    if not rounds:
        return rollouts
    report: dict[str, Any] = {"rounds": 0, "dropped_groups": 0, "dropped_tokens": 0}
    report["reward_mean_before"] = sum(rollout.reward for rollout in rollouts) / len(rollouts)
    diagnosis, asked = sampler.diagnosis, {rollout.prompt_index for rollout in rollouts}
    for attempt in range(1, rounds + 1):
        silent = silent_groups(rollouts, config, beta)
        fresh = substitutes(len(sampler.prompts), sorted(asked), len(silent), f"refill/{config.seed}/{step}/{attempt}")
        if not fresh:
            break
        places = dict(zip(silent, fresh, strict=False))
        with clock("generate"):
            answers = sampler.answer(step, places, attempt)
        with clock("reward"):
            sampler.verify(answers)
        rollouts = list(rollouts)
        for number, group in enumerate(places):
            at = slice(group * samples, (group + 1) * samples)
            report["dropped_tokens"] += sum(len(rollout.response_ids) for rollout in rollouts[at])
            rollouts[at] = answers[number * samples : (number + 1) * samples]
        asked |= set(fresh)
        report["rounds"], report["dropped_groups"] = attempt, report["dropped_groups"] + len(places)
    report["silent_groups"] = len(silent_groups(rollouts, config, beta))
    sampler.diagnosis, sampler.refilled = diagnosis, {"refill": report}
    return rollouts
