"""On-policy data of stage 2: prompts in, judged rollouts out, the same list on every rank.

Every rank answers its share of a step's prompts and the answers are gathered over the world.  What a prompt draws hangs on
(run seed, step, its place in the step), so a resumed run samples what the undisturbed one would have.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.config import Config
from vold_nemo.data.order import Order
from vold_nemo.data.prompts import Prompt, teacher_number
from vold_nemo.data.rollouts import Fate, Rollout, write_rollouts
from vold_nemo.data.templates import render_prompt
from vold_nemo.rewards import diagnose
from vold_nemo.rewards.node_scorer import NodeScorer
from vold_nemo.rollout.engine import Completion, EnginePrompt, RolloutEngine, Sampling


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
        validation: held-out prompts by name, ``image`` and ``text``, whichever there are.
    """

    def __init__(
        self, engine: RolloutEngine, tokenizer, prompts: Sequence[Prompt], validation: Mapping[str, Sequence[Prompt]],
        config: Config, layout,
    ):  # fmt: skip
        self.engine, self.tokenizer, self.prompts, self.validation = engine, tokenizer, prompts, validation
        self.config, self.layout = config, layout
        self.order = Order(
            len(prompts), config.vold.prompts_per_step, config.seed, sources=[prompt.source for prompt in prompts],
            mixture=config.data.mixture,
        )  # fmt: skip
        self.scorer = NodeScorer(config.reward)
        self.scorer.prepare(prompt.verifier for asked in (prompts, *validation.values()) for prompt in asked)
        self.diagnosis: dict[str, Any] = {}  # what the verifiers said of the step, for its metrics
        self.refilled: dict[str, Any] = {}  # and what became of groups without signal (models/refill.py)
        for prompt in prompts if config.teachers else ():  # a name that nobody bears is found before the first step
            teacher_number(prompt, config.teachers)

    def name(self, rollout: Rollout) -> str:
        return self.prompts[rollout.prompt_index].id

    def data_name(self) -> str:
        """See :meth:`vold_nemo.models.student.MegatronStudent.data_name`."""
        return self.order.name(repr([(prompt.id, prompt.messages, prompt.answer) for prompt in self.prompts]))

    def seed(self, step: int, attempt: int = 0, length: int = 0) -> int:
        """Of the engine's random numbers: 63 bits of a hash of (run seed, step), and of what is asked again in it."""
        again = f"/{attempt}/{length}" if attempt or length else ""
        digest = hashlib.sha256(f"rollouts/{self.config.seed}/{step}{again}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def generate(self, step: int) -> list[Rollout]:
        """K answers to each prompt of the step, group after group.  The engine must hold the weights of ``step``."""
        self.seconds = 0.0
        return self.answer(step, dict(enumerate(self.order.indices(step))))

    def answer(self, step: int, asked: Mapping[int, int], attempt: int = 0) -> list[Rollout]:
        """K answers to each of ``asked``, {place in the step: index of its prompt}, in that order; all of the world's."""
        places = list(asked.items())[self.layout.rank :: self.layout.world]
        rendered = [render_prompt(self.tokenizer, self.prompts[index]) for _, index in places]
        completions = self._complete(
            [EnginePrompt(ids, key=place) for (place, _), ids in zip(places, rendered, strict=True)],
            step, attempt, share=len(asked) / self.config.vold.prompts_per_step,
        )  # fmt: skip
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

    def _complete(self, prompts: list[EnginePrompt], step: int, attempt: int, share: float) -> list[Completion]:
        """K completions of this rank's prompts, within ``share`` of ``rollout.token_budget``.

        The budget is dealt out evenly: every rollout may take its part; what those that ended left over is dealt out evenly
        among those that still run, which are continued, and so on, until less than 1/64 of ``rollout.max_tokens`` each is
        left or nothing runs.  Then what runs is cut off (``length``), as at ``max_tokens``.  Lengths decide, not clocks: the
        same answers on every run and layout.  Without a budget, or with one that nobody meets, there is one round.
        """
        rollout = self.config.rollout
        samples, longest, least = rollout.samples_per_prompt, rollout.max_tokens, max(1, rollout.max_tokens // 64)
        length, running = longest, self._over_world(len(prompts) * samples)[0]
        if rollout.token_budget is not None:
            budget = int(share * rollout.token_budget)
            length = max(1, min(longest, budget // max(1, running)))
        sampling = Sampling(
            samples, rollout.temperature, length, stop=tuple(rollout.stop), seed=self.seed(step, attempt)
        )
        done = self._timed(prompts, sampling, step)
        while length < longest:
            cut = [at for at, answer in enumerate(done) if answer.finish_reason == "length"]
            spent, running = self._over_world(sum(len(answer.ids) for answer in done), len(cut))
            further = min(longest - length, (budget - spent) // running) if running else 0
            if further < least:
                break
            again = self._timed(
                [
                    EnginePrompt(
                        prompts[done[at].prompt_index].ids + done[at].ids,
                        key=prompts[done[at].prompt_index].key * samples + done[at].sample,
                        answered=len(done[at].ids),
                    )
                    for at in cut
                ],
                Sampling(1, rollout.temperature, further, seed=self.seed(step, attempt, length)),
                step,
            )
            for at, more in zip(cut, again, strict=True):
                first = done[at]
                done[at] = replace(
                    first, ids=first.ids + more.ids, logprobs=first.logprobs + more.logprobs,
                    finish_reason=more.finish_reason,
                )  # fmt: skip
            length += further
        return done

    def _timed(self, prompts: list[EnginePrompt], sampling: Sampling, step: int) -> list[Completion]:
        began = time.perf_counter()
        done = self.engine.generate(prompts, sampling, expect_version=step)
        self.seconds += time.perf_counter() - began
        return done

    def _over_world(self, *counts: int) -> list[int]:
        if self.layout.world == 1:
            return list(counts)
        totals = torch.tensor(counts, dtype=torch.int64, device=self.layout.device)
        dist.all_reduce(totals)
        return totals.tolist()

    def verify(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Rewards, also written into the rollouts; one rank of each node judges a share."""
        asked = [self.prompts[rollout.prompt_index] for rollout in rollouts]
        verdicts = self.scorer.score([(r.text, p.answer, p.verifier) for r, p in zip(rollouts, asked, strict=True)])
        for rollout, verdict in zip(rollouts, verdicts, strict=True):
            rollout.reward, rollout.reason, rollout.extracted = verdict.reward, verdict.reason, verdict.extracted
        self.diagnosis = diagnose(verdicts, [prompt.verifier or self.config.reward.verifier for prompt in asked])
        return [rollout.reward for rollout in rollouts]

    def validate(self, step: int) -> dict[str, Any]:
        """Greedy accuracy on the held-out questions every ``vold.validation.every`` steps, and at step 0; else nothing.

        Greedy answers draw no random number: rollouts are the same with and without validation.
        """
        settings = self.config.vold.validation
        if not settings.every or step % settings.every:
            return {}
        found: dict[str, Any] = {}
        for name, prompts in self.validation.items():
            share = prompts[self.layout.rank :: self.layout.world]
            completions = self.engine.generate(
                [EnginePrompt(render_prompt(self.tokenizer, prompt), images=prompt.open_images()) for prompt in share],
                Sampling(1, 0.0, settings.max_tokens, stop=tuple(self.config.rollout.stop)),
                expect_version=step,
            )
            texts = [(self.tokenizer.decode(c.ids, skip_special_tokens=True), c.finish_reason) for c in completions]
            answers = gather(texts, self.layout.rank, self.layout.world)
            verdicts = self.scorer.score([(text, p.answer, p.verifier) for (text, _), p in zip(answers, prompts, strict=True)])
            rewards = [verdict.reward for verdict in verdicts]
            found[f"{name}_accuracy"] = sum(rewards) / len(rewards)
            found[f"{name}_questions"] = len(rewards)
            found[f"{name}_truncated_rate"] = sum(reason == "length" for _, reason in answers) / len(answers)
            by_domain: dict[str, list[float]] = {}
            for prompt, reward in zip(prompts, rewards, strict=True):
                by_domain.setdefault(prompt.domain or name, []).append(reward)
            if len(by_domain) > 1:
                found[f"{name}_by_domain"] = {domain: sum(r) / len(r) for domain, r in sorted(by_domain.items())}
        return {"validation": found} if found else {}

    def records(self, step: int) -> bool:
        """Whether ``step`` leaves a file in ``rollouts/`` (``vold.rollout_log_every``)."""
        every = self.config.vold.rollout_log_every
        return bool(every) and step % every == 0

    def record(self, step: int, rollouts: Sequence[Rollout], fates: Sequence[Fate] | None, folder: Path) -> None:
        """``rollouts/step_*.jsonl``, by rank 0, which alone knows all ``fates``."""
        if self.layout.rank == 0:
            write_rollouts(folder, step, rollouts, self.prompts, fates, by_token=self.config.vold.rollout_log_tokens)

    def close(self) -> None:
        self.scorer.close()
        self.engine.close()
