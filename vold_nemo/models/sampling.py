"""On-policy data of stage 2: prompts in, judged rollouts out, the same table on every rank.

Every rank answers its share of a step's prompts and the answers are gathered over the world.  What a prompt draws hangs on
(run seed, step, its place in the step), so a resumed run samples what the undisturbed one would have.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.config import Config
from vold_nemo.data.order import Order
from vold_nemo.data.prompts import Prompt, question_text, teacher_number
from vold_nemo.data.templates import render_prompt
from vold_nemo.rewards import diagnose
from vold_nemo.rewards.node_scorer import NodeScorer
from vold_nemo.rollout.engine import Completion, EnginePrompt, RolloutEngine, Sampling
from vold_nemo.step import Step, records


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


def substitutes(size: int, taken: Sequence[int], count: int, name: str) -> list[int]:
    """Up to ``count`` different indices below ``size`` that are not in ``taken``, drawn from the string ``name`` alone."""
    known = set(taken)
    drawn = random.Random(name).sample(range(size), min(size, count + len(known)))
    return [index for index in drawn if index not in known][:count]


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
        for prompt in prompts if config.teachers else ():  # a name that nobody bears is found before the first step
            teacher_number(prompt, config.teachers)

    def name(self, step: Step, row: int) -> str:
        """Id of the prompt of ``row``."""
        return self.prompts[int(step["prompt"][row])].id

    def data_name(self) -> str:
        """See :meth:`vold_nemo.models.student.MegatronStudent.data_name`."""
        return self.order.name(repr([(prompt.id, prompt.messages, prompt.answer) for prompt in self.prompts]))

    def seed(self, number: int, attempt: int = 0, length: int = 0) -> int:
        """Of the engine's random numbers: 63 bits of a hash of (run seed, step), and of what is asked again in it."""
        again = f"/{attempt}/{length}" if attempt or length else ""
        digest = hashlib.sha256(f"rollouts/{self.config.seed}/{number}{again}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def sample(
        self, number: int, phase: Callable[[str], AbstractContextManager], silent: Callable[[Step], list[int]]
    ) -> tuple[Step, dict[str, Any]]:
        """K answers to each prompt of step ``number``, judged.  The engine must hold the weights of that step.

        Groups without any signal may make room for other prompts (``rollout.refill_rounds``; off in the paper).  DAPO drops
        every group whose rewards are all equal; here an all-wrong group has no advantage but the whole KL to the teacher, and
        under the paper's objective only one that is all right goes.  A step keeps its number of groups: where no round is
        left, or no prompt, the last ones stay, and cost no training token.

        Args:
            phase: ``with phase("generate")`` takes the time.
            silent: groups that cannot move a gradient.

        Returns:
            the table, the same on every rank; what the verifiers said and, under ``refill``, what was replaced, for
            metrics.jsonl; and under ``own_seconds`` what this rank's engine took.
        """
        self._seconds = 0.0
        with phase("generate"):
            step = self.answer(number, dict(enumerate(self.order.indices(number))))
        with phase("reward"):
            report = self.verify(step)
        if rounds := self.config.rollout.refill_rounds:
            # Rewards before are the only fair sample of what the student can do.
            refill: dict[str, Any] = {"rounds": 0, "dropped_groups": 0, "dropped_tokens": 0}
            refill["reward_mean_before"] = step["reward"].mean().item()
            asked = set(step["prompt"].tolist())
            for attempt in range(1, rounds + 1):
                gone, name = silent(step), f"refill/{self.config.seed}/{number}/{attempt}"
                # What comes hangs on nothing but that name and on which groups went: the same on any layout and after a
                # resume.  The epochs' order is not touched; a prompt drawn here comes again in its turn.
                fresh = substitutes(len(self.prompts), sorted(asked), len(gone), name)
                if not fresh:
                    break
                places = dict(zip(gone, fresh, strict=False))
                with phase("generate"):
                    more = self.answer(number, places, attempt)
                with phase("reward"):
                    self.verify(more)
                refill["dropped_tokens"] += len(step.pick_groups(places).responses.flat)
                instead = {group: (more, place) for place, group in enumerate(places)}
                step = Step.assembled([instead.get(group, (step, group)) for group in range(len(step.prompts))])
                asked |= set(fresh)
                refill["rounds"], refill["dropped_groups"] = attempt, refill["dropped_groups"] + len(places)
            refill["silent_groups"] = len(silent(step))
            report["refill"] = refill
        return step, report | {"own_seconds": self._seconds}

    def answer(self, number: int, asked: Mapping[int, int], attempt: int = 0) -> Step:
        """K answers to each of ``asked``, {place in the step: index of its prompt}, in that order; all of the world's."""
        places = list(asked.items())[self.layout.rank :: self.layout.world]
        rendered = [render_prompt(self.tokenizer, self.prompts[index]) for _, index in places]
        done = self._complete(
            [EnginePrompt(ids, key=place) for (place, _), ids in zip(places, rendered, strict=True)],
            number, attempt, share=len(asked) / self.config.vold.prompts_per_step,
        )  # fmt: skip
        done.sort(key=lambda answer: answer.prompt_index)
        prompts = [places[answer.prompt_index][1] for answer in done]
        step = Step.of(
            rendered, [answer.ids for answer in done], self.config.rollout.samples_per_prompt,
            engine=[answer.logprobs for answer in done], prompt=prompts, sample=[answer.sample for answer in done],
            truncated=[answer.finish_reason == "length" for answer in done],
            scorer=[teacher_number(self.prompts[index], self.config.teachers) for index in prompts],
        )  # fmt: skip
        step = step.gather(self.layout.world)
        step["version"] = number
        return step

    def _complete(self, prompts: list[EnginePrompt], number: int, attempt: int, share: float) -> list[Completion]:
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
            samples, rollout.temperature, length, stop=tuple(rollout.stop), seed=self.seed(number, attempt)
        )
        done = self._timed(prompts, sampling, number)
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
                Sampling(1, rollout.temperature, further, seed=self.seed(number, attempt, length)),
                number,
            )
            for at, more in zip(cut, again, strict=True):
                first = done[at]
                done[at] = replace(
                    first, ids=first.ids + more.ids, logprobs=first.logprobs + more.logprobs,
                    finish_reason=more.finish_reason,
                )  # fmt: skip
            length += further
        return done

    def _timed(self, prompts: list[EnginePrompt], sampling: Sampling, number: int) -> list[Completion]:
        began = time.perf_counter()
        done = self.engine.generate(prompts, sampling, expect_version=number)
        self._seconds += time.perf_counter() - began
        return done

    def _over_world(self, *counts: int) -> list[int]:
        if self.layout.world == 1:
            return list(counts)
        totals = torch.tensor(counts, dtype=torch.int64, device=self.layout.device)
        dist.all_reduce(totals)
        return totals.tolist()

    def verify(self, step: Step) -> dict[str, Any]:
        """Write ``reward`` and what the verifiers said; one rank of each node judges a share.  Returns numbers about it."""
        asked = [self.prompts[index] for index in step["prompt"].tolist()]
        verdicts = self.scorer.score([
            lambda row=row, prompt=prompt: (self.text(step, row), prompt.answer, prompt.verifier)
            for row, prompt in enumerate(asked)
        ])  # fmt: skip
        step["reward"] = [verdict.reward for verdict in verdicts]
        step.labels |= {
            "reason": [verdict.reason for verdict in verdicts], "extracted": [verdict.extracted for verdict in verdicts]
        }  # fmt: skip
        return diagnose(verdicts, [prompt.verifier or self.config.reward.verifier for prompt in asked])

    def text(self, step: Step, row: int) -> str:
        """The response of ``row`` without special tokens."""
        return self.tokenizer.decode(step.responses[row].tolist(), skip_special_tokens=True)

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

    def record(self, number: int, step: Step, folder: Path) -> None:
        """``rollouts/step_*.jsonl``, by rank 0, of a step whose columns are whole."""
        if self.layout.rank == 0:
            asked = [self.prompts[index] for index in step["prompt"].tolist()]
            step.labels |= {
                "id": [prompt.id for prompt in asked], "prompt": [question_text(prompt) for prompt in asked],
                "truth": [prompt.answer for prompt in asked], "verifier": [prompt.verifier for prompt in asked],
                "text": [self.text(step, row) for row in range(len(step))],
            }  # fmt: skip
            records.write(step, folder / f"step_{number:06d}.jsonl", by_token=self.config.vold.rollout_log_tokens)

    def close(self) -> None:
        self.scorer.close()
        self.engine.close()
