"""On-policy data of stage 2: prompts in, judged rollouts out, the same table on every rank.

Every rank answers its share of a step's prompts and the answers are gathered over the world.  What a prompt draws hangs on
(run seed, step, its place in the step), so a resumed run samples what the undisturbed one would have.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.checkpoint.journal import Backlog
from vold_nemo.config import Config, ConfigError
from vold_nemo.data.known_rows import digest
from vold_nemo.data.order import Order
from vold_nemo.data.prompts import Prompt, question_text, teacher_number
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.templates import render_prompt
from vold_nemo.rewards import diagnose
from vold_nemo.rewards.alarms import require_verdicts
from vold_nemo.rewards.node_scorer import NodeScorer
from vold_nemo.rollout.engine import Completion, EnginePrompt, RolloutEngine, Sampling
from vold_nemo.step import Step, records

logger = logging.getLogger(__name__)

JUDGED_AGAIN = 3  # times that groups without a verifier are replaced in a step
NOT_JUDGED = "error: ConfigError"  # rewards/worker.py: the function that a row names cannot be imported (any more)
SKIPPED = "skipped in training"  # what rejected.jsonl calls their source


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

    A prompt that cannot be asked, or whose verifier cannot be found, although it was admitted when the data were loaded, is
    skipped, named and counted; another one takes its place (:meth:`Order.instead`), as under ``data.without``.

    Args:
        engine: holds the whole student; the trainer feeds it weights.
        prompts: training prompts, text only.
        validation: held-out prompts by name, ``image`` and ``text``, whichever there are.
    """

    def __init__(
        self, engine: RolloutEngine, tokenizer, prompts: Sequence[Prompt], validation: Mapping[str, Sequence[Prompt]],
        config: Config, layout, rejected: Rejected | None = None,
    ):  # fmt: skip
        self.rejected = rejected  # where what is skipped is written down
        self.backlog = Backlog(4)  # steps whose rollouts found no room on the disk
        self.engine, self.tokenizer, self.prompts, self.validation = engine, tokenizer, prompts, validation
        self.config, self.layout = config, layout
        left_out = set(config.data.without)
        without = [index for index, prompt in enumerate(prompts) if prompt.id in left_out]
        self.order = Order(
            len(prompts), config.vold.prompts_per_step, config.seed, sources=[prompt.source for prompt in prompts],
            mixture=config.data.mixture, without=without,
        )  # fmt: skip
        self.skipped: dict[int, str] = {}  # index of a prompt that could not be asked or judged after all -> why
        used = [prompt for prompt in prompts if prompt.id not in left_out]
        self.scorer = NodeScorer(config.reward, Path(config.outputs) / config.vold.run / "judge.jsonl")
        judged = [prompt for asked in (used, *validation.values()) for prompt in asked]
        self.scorer.prepare(prompt.verifier for prompt in judged)
        for warning in self.scorer.try_own([(prompt.verifier, prompt.answer) for prompt in judged]):
            self._warn(warning)
        for prompt in used if config.teachers else ():  # a name that nobody bears is found before the first step
            teacher_number(prompt, config.teachers)

    def _warn(self, said: str) -> None:
        if self.layout.rank == 0:
            logger.warning("%s", said)

    def name(self, step: Step, row: int) -> str:
        """Id of the prompt of ``row``."""
        return self.prompts[int(step["prompt"][row])].id

    def data_name(self) -> str:
        """See :meth:`vold_nemo.models.student.MegatronStudent.data_name`."""
        return self.order.name(repr([(prompt.id, digest(prompt)) for prompt in self.prompts]))

    def former_data_name(self) -> str:
        """:meth:`data_name` as checkpoints bear it of runs that kept no list of their rows."""
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
        for attempt in range(1, JUDGED_AGAIN + 1):
            gone = self._unjudged(step)
            if not gone:
                break
            taken = set(step["prompt"].tolist())
            places = {place: self._instead(number, place, index, taken, -attempt) for place, index in gone.items()}
            with phase("generate"):
                more = self.answer(number, places, -attempt)
            with phase("reward"):
                self.verify(more)
            instead = {group: (more, place) for place, group in enumerate(places)}
            step = Step.assembled([instead.get(group, (step, group)) for group in range(len(step.prompts))])
        require_verdicts(f"step {number + 1}", step.labels.get("trouble", []), step.labels.get("reason", []))
        if self.skipped:
            report["skipped_prompts"] = len(self.skipped)
        if rounds := self.config.rollout.refill_rounds:
            # Rewards before are the only fair sample of what the student can do.
            refill: dict[str, Any] = {"rounds": 0, "dropped_groups": 0, "dropped_tokens": 0}
            refill["reward_mean_before"] = step["reward"].mean().item()
            asked = set(step["prompt"].tolist())
            for attempt in range(1, rounds + 1):
                gone, name = silent(step), f"refill/{self.config.seed}/{number}/{attempt}"
                # What comes hangs on nothing but that name and on which groups went: the same on any layout and after a
                # resume.  The epochs' order is not touched; a prompt drawn here comes again in its turn.
                known = sorted(asked | self.order.without | self.skipped.keys())
                fresh = substitutes(len(self.prompts), known, len(gone), name)
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
        limit = self.config.rollout.max_tokens
        places, rendered, refused = [], [], {}
        for place, index in list(asked.items())[self.layout.rank :: self.layout.world]:
            ids, tried = self._ids(index), set(asked.values())
            while (reason := self._refused(ids, limit)) is not None:
                refused[index] = reason  # this rank's words; every rank learns of it below
                index = self._instead(number, place, index, tried, attempt, refused)
                tried.add(index)
                ids = self._ids(index)
            places.append((place, index))
            rendered.append(ids)
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
        taken = step["prompt"].tolist()[:: self.config.rollout.samples_per_prompt]
        self._skip({
            index: refused.get(index) or self._refused(self._ids(index), limit) or "refused by another rank's engine"
            for (_, index), instead in zip(asked.items(), taken, strict=True) if instead != index
        })  # fmt: skip
        return step

    def _ids(self, index: int) -> list[int]:
        prompt = self.prompts[index]
        return render_prompt(self.tokenizer, prompt) if prompt.ids is None else prompt.ids.tolist()

    def _refused(self, ids: list[int], max_tokens: int) -> str | None:
        """What the engine would say against a prompt, before it takes the others of the batch down with it."""
        limits = getattr(self.engine, "limits", None)
        return limits.refusal(EnginePrompt(ids), max_tokens) if limits is not None else None

    def _instead(
        self, number: int, place: int, index: int, taken: Collection[int], attempt: int = 0, more: Collection[int] = ()
    ) -> int:
        position = f"{number * self.order.batch + place}" + (f"/{attempt}" if attempt else "")
        return self.order.instead(position, index, taken, {*self.skipped, *more})

    def _unjudged(self, step: Step) -> dict[int, int]:
        """Groups whose verifier is gone, {place: index of the prompt}: none of their answers was judged."""
        samples, reasons = self.config.rollout.samples_per_prompt, step.labels.get("reason", [])
        prompts = step["prompt"].tolist()[::samples]

        def gone(place: int, index: int) -> bool:  # the run's own verifier is no row's fault
            said = reasons[place * samples : (place + 1) * samples]
            return bool(said) and all(NOT_JUDGED in one for one in said) and self.prompts[index].verifier is not None

        found = {place: index for place, index in enumerate(prompts) if gone(place, index)}
        self._skip({index: reasons[place * samples] for place, index in found.items()})
        return found

    def _skip(self, reasons: Mapping[int, str]) -> None:
        """Prompts that are left out from now on, the same on every rank.

        Raises:
            ConfigError: more than ``data.max_rejected_share`` of the prompts.
        """
        reasons = {index: reason for index, reason in reasons.items() if index not in self.skipped}
        self.skipped |= reasons
        share = self.config.data.max_rejected_share
        if self.layout.rank == 0:
            for index, reason in reasons.items():
                logger.warning("prompt %s is skipped: %s", self.prompts[index].id, reason)
                if self.rejected is not None:
                    prompt = self.prompts[index]
                    self.rejected.add(
                        prompt.row, f"skipped: {reason}", prompt.messages[-1]["content"], SKIPPED, name=prompt.id
                    )
        if len(self.skipped) > share * len(self.prompts):
            names = [self.prompts[index].id for index in self.skipped]
            raise ConfigError(
                "data.prompts",
                f"{len(names)} of {len(self.prompts)} prompts could not be asked or judged: {', '.join(names[:8])}",
                f"at most data.max_rejected_share = {share:g} of them", "see rejected.jsonl in the run folder for each reason",
            )  # fmt: skip

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
            lambda row=row, prompt=prompt: self._item(self.text(step, row), prompt) for row, prompt in enumerate(asked)
        ])  # fmt: skip
        step["reward"] = [verdict.reward for verdict in verdicts]
        step.labels |= {
            "reason": [verdict.reason for verdict in verdicts], "extracted": [verdict.extracted for verdict in verdicts],
            "trouble": [verdict.trouble for verdict in verdicts],
        }  # fmt: skip
        verifiers = [prompt.verifier or self.config.reward.verifier for prompt in asked]
        return diagnose(verdicts, verifiers, step.column("truncated").tolist())

    def _item(self, text: str, prompt: Prompt) -> tuple:
        asked = (text, prompt.answer, prompt.verifier)
        return (*asked, question_text(prompt)) if self.config.reward.judge.url is not None else asked

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
                [
                    EnginePrompt(
                        render_prompt(self.tokenizer, prompt) if prompt.ids is None else prompt.ids.tolist(),
                        images=prompt.open_images(),
                    )
                    for prompt in share
                ],
                Sampling(1, 0.0, settings.max_tokens, stop=tuple(self.config.rollout.stop)),
                expect_version=step,
            )
            texts = [(self.tokenizer.decode(c.ids, skip_special_tokens=True), c.finish_reason) for c in completions]
            answers = gather(texts, self.layout.rank, self.layout.world)
            verdicts = self.scorer.score([self._item(text, p) for (text, _), p in zip(answers, prompts, strict=True)])
            require_verdicts(f"validation, {name}", [v.trouble for v in verdicts], [v.reason for v in verdicts])
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
            file, by_token = folder / f"step_{number:06d}.jsonl", self.config.vold.rollout_log_tokens
            self.backlog.do(str(file), lambda: records.write(step, file, by_token=by_token))

    def close(self) -> None:
        self.backlog.close()
        self.scorer.close()
        self.engine.close()
