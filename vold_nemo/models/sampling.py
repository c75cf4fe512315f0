"""On-policy data of stage 2: prompts in, judged rollouts out, the same list on every rank.

Every rank answers its share of a step's prompts and the answers are gathered over the world.  What a prompt draws hangs on
(run seed, step, its place in the step), so a resumed run samples what the undisturbed one would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vold_nemo.config import Config
from vold_nemo.data.order import Order
from vold_nemo.data.prompts import Prompt, teacher_number
from vold_nemo.data.rollouts import Rollout, write_rollouts
from vold_nemo.data.templates import render_prompt
from vold_nemo.rewards import diagnose
from vold_nemo.rewards.shared import SharedScorer
from vold_nemo.rollout.engine import EnginePrompt, RolloutEngine, Sampling


def gather(mine: list, rank: int, world: int) -> list:
    """Inverse of dealing ``items[rank::world]``: the whole list, in its order, on every rank.  One object all-gather."""
    if world == 1:
        return mine
    shares: list = [None] * world
    dist.all_gather_object(shares, mine)
    whole: list = [None] * sum(len(share) for share in shares)
    for r, share in enumerate(shares):
        whole[r::world] = share
    return whole


class Sampler:
    """Prompts, rollout engine and verifier of a run.

    Args:
        engine: holds the whole student; the trainer feeds it weights.
        prompts: training prompts, text only.
        validation: held-out prompts with images, or empty.
    """

    def __init__(
        self, engine: RolloutEngine, tokenizer, prompts: Sequence[Prompt], validation: Sequence[Prompt], config: Config, layout
    ):
        self.engine, self.tokenizer, self.prompts, self.validation = engine, tokenizer, prompts, validation
        self.config, self.layout = config, layout
        self.order = Order(
            len(prompts), config.vold.prompts_per_step, config.seed, sources=[prompt.source for prompt in prompts],
            mixture=config.data.mixture,
        )  # fmt: skip
        self.scorer = SharedScorer(config.reward)
        self.scorer.prepare(prompt.verifier for prompt in (*prompts, *validation))
        self.diagnosis: dict[str, Any] = {}
        for prompt in prompts if config.teachers else ():  # a name that nobody bears is found before the first step
            teacher_number(prompt, config.teachers)

    def name(self, rollout: Rollout) -> str:
        return self.prompts[rollout.prompt_index].id

    def data_name(self) -> str:
        """See :meth:`vold_nemo.models.student.MegatronStudent.data_name`."""
        return self.order.name(repr([(prompt.id, prompt.messages, prompt.answer) for prompt in self.prompts]))

    def seed(self, step: int) -> int:
        """Of the engine's random numbers in this step: 63 bits of a hash of (run seed, step)."""
        digest = hashlib.sha256(f"rollouts/{self.config.seed}/{step}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def generate(self, step: int) -> list[Rollout]:
        """K answers to each prompt of the step, group after group.  The engine must hold the weights of ``step``."""
        rollout = self.config.rollout
        places = list(enumerate(self.order.indices(step)))[self.layout.rank :: self.layout.world]
        rendered = [render_prompt(self.tokenizer, self.prompts[index]) for _, index in places]
        completions = self.engine.generate(
            [EnginePrompt(ids, key=place) for (place, _), ids in zip(places, rendered, strict=True)],
            Sampling(rollout.samples_per_prompt, rollout.temperature, rollout.max_tokens, seed=self.seed(step)),
            expect_version=step,
        )
        groups: list[list[Rollout]] = [[] for _ in places]
        for done in completions:
            groups[done.prompt_index].append(
                Rollout(
                    prompt_index=places[done.prompt_index][1], sample=done.sample, prompt_ids=rendered[done.prompt_index],
                    response_ids=done.ids, logprobs=done.logprobs, finish_reason=done.finish_reason,
                    text=self.tokenizer.decode(done.ids, skip_special_tokens=True),
                    teacher=teacher_number(self.prompts[places[done.prompt_index][1]], self.config.teachers),
                )
            )  # fmt: skip
        return [rollout for group in gather(groups, self.layout.rank, self.layout.world) for rollout in group]

    def verify(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Rewards, also written into the rollouts; one rank of each node judges a share."""
        asked = [self.prompts[rollout.prompt_index] for rollout in rollouts]
        verdicts = self.scorer.score([(r.text, p.answer, p.verifier) for r, p in zip(rollouts, asked, strict=True)])
        for rollout, verdict in zip(rollouts, verdicts, strict=True):
            rollout.reward, rollout.reason, rollout.extracted = verdict.reward, verdict.reason, verdict.extracted
        self.diagnosis = diagnose(verdicts, [prompt.verifier or self.config.reward.verifier for prompt in asked])
        return [rollout.reward for rollout in rollouts]

    def validate(self, step: int) -> dict[str, Any]:
        """Greedy accuracy on the held-out image questions, every ``vold.validation.every`` steps; else nothing."""
        settings = self.config.vold.validation
        if not self.validation or not settings.every or step % settings.every:
            return {}
        share = self.validation[self.layout.rank :: self.layout.world]
        completions = self.engine.generate(
            [EnginePrompt(render_prompt(self.tokenizer, prompt), images=prompt.open_images()) for prompt in share],
            Sampling(1, 0.0, settings.max_tokens),
            expect_version=step,
        )
        items = [
            (self.tokenizer.decode(done.ids, skip_special_tokens=True), prompt.answer, prompt.verifier)
            for done, prompt in zip(completions, share, strict=True)
        ]
        rewards = [verdict.reward for verdict in self.scorer.score(gather(items, self.layout.rank, self.layout.world))]
        return {"validation": {"image_accuracy": sum(rewards) / len(rewards), "questions": len(rewards)}}

    def record(self, step: int, rollouts: Sequence[Rollout], folder: Path) -> None:
        """``rollouts/step_*.jsonl``, by rank 0, every ``vold.rollout_log_every`` steps."""
        every = self.config.vold.rollout_log_every
        if self.layout.rank == 0 and every and step % every == 0:
            write_rollouts(folder, step, rollouts, self.prompts)

    def close(self) -> None:
        self.scorer.close()
