"""Where traces come from: the teacher on transformers, the teacher on vLLM, or the data set itself.

Each source is an iterator of blocks of trace rows (``data/traces.py`` says what a row is).  A block is written and flushed
before the next one is asked for, so what a killed job loses is a block.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from vold_nemo.config import Config, DatasetConfig
from vold_nemo.data.prompts import Prompt, Wanted, read_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.rollout.engine import Completion, EnginePrompt, Sampling

Done = Collection[tuple[str, int]]
BLOCK, SECONDS = 64, 5.0  # answers of vLLM that are written together, or those of so many seconds


def dataset_of(config: Config) -> DatasetConfig:
    """The prompts of stage 1."""
    return config.data.trace_prompts if config.data.trace_prompts is not None else config.data.prompts


def wanted(config: Config) -> Wanted:
    data = config.data
    return Wanted(
        answers=False, responses=config.traces.engine == "dataset", system_prompt=data.system_prompt,
        instruction=data.instruction, verifier=config.reward.verifier,
        listed=config.reward.verifiers,
    )  # fmt: skip


def settings(config: Config, tokenizer) -> dict[str, Any]:
    """What every trace carries and what a resumed run must agree on.  ``tokenizer``: the teacher's; None without a teacher."""
    from vold_nemo.checkpoint.lineage import weights_digest

    traces, dataset = config.traces, dataset_of(config)
    said: dict[str, Any] = {"verifier": config.reward.verifier} if traces.verify else {}
    if tokenizer is None:
        origin = f"dataset {dataset.path}" + (f", {dataset.subset}" if dataset.subset else "")
        return {"teacher": origin, "thinking": None, "template": None, "sampling": None, "seed": config.seed, **said}
    return {
        "teacher": config.teacher.path,
        "teacher_weights": weights_digest(config.teacher.path),
        "thinking": config.teacher.thinking,
        "template": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()[:16],
        "sampling": {"temperature": traces.temperature, "max_tokens": traces.max_tokens},
        "seed": config.seed,
        **said,
    }


def own_traces(config: Config, shard: int, shards: int, rejected: Rejected, done: Done) -> Iterator[list[dict[str, Any]]]:
    """The set's own traces, as text: the student's tokenizer reads them in stage 1, and ``sft.max_length`` drops long ones."""
    block: list[dict[str, Any]] = []
    for number, prompt in enumerate(read_prompts(dataset_of(config), rejected, wanted(config))):
        if number % shards != shard or (prompt.id, 0) in done:
            continue
        block.append(_row(prompt, 0, prompt.response, None, None, "stop"))
        if len(block) == 4 * BLOCK:
            yield block
            block = []
    if block:
        yield block


class TeacherTraces:
    """The teacher's answers to ``prompts``.  ``build`` makes its engine; it is called only if something is left to answer.

    ``blocks(done)`` answers what is not yet done.  With transformers a block is ``traces.batch`` prompts, cut from all of them
    and never from what is left, so that a resumed run makes the very traces that it lost; with vLLM single answers are
    resumed, and a block is what has ended in the meantime.
    """

    def __init__(self, config: Config, tokenizer, prompts: Sequence[Prompt], rejected: Rejected, build: Callable[[], Any]):
        self.config, self.tokenizer, self.prompts, self.rejected, self.build = config, tokenizer, prompts, rejected, build
        self.ready = time.monotonic()  # when the teacher was loaded
        self._admit()
        traces = config.traces
        self.streams = traces.engine == "vllm"
        self.sampling = Sampling(
            samples=1 if self.streams else traces.samples_per_prompt, temperature=traces.temperature,
            max_tokens=traces.max_tokens, seed=config.seed,
        )  # fmt: skip

    def blocks(self, done: Done) -> Iterator[list[dict[str, Any]]]:
        yield from (self._streamed(done) if self.streams else self._batched(done))

    def _batched(self, done: Done) -> Iterator[list[dict[str, Any]]]:
        size, samples = self.config.traces.batch, range(self.sampling.samples)
        batches = [self.prompts[start : start + size] for start in range(0, len(self.prompts), size)]
        left = [
            batch for batch in batches if any((p.id, k) not in done for p in batch if p.id in self._asked for k in samples)
        ]
        engine = self.build() if left else None
        self.ready = time.monotonic()
        for batch in left:
            pairs = [(prompt, asked) for prompt in batch if (asked := self._ask(prompt)) is not None]
            completions = engine.generate([asked for _, asked in pairs], self.sampling)
            yield [self._answered(pairs[c.prompt_index][0], c) for c in completions]

    def _streamed(self, done: Done) -> Iterator[list[dict[str, Any]]]:
        samples = range(self.config.traces.samples_per_prompt)
        askable = [(i, prompt) for i, prompt in enumerate(self.prompts) if prompt.id in self._asked]
        left = [(i, k) for i, prompt in askable for k in samples if (prompt.id, k) not in done]
        if not left:
            return
        asked = ((i, k, request) for i, k in left if (request := self._ask(self.prompts[i])) is not None)  # when needed
        answers = self.build().answers(asked, self.sampling)
        self.ready = time.monotonic()
        for block in _grouped(answers):
            yield [self._answered(self.prompts[c.prompt_index], c) for c in block]

    def _admit(self) -> None:
        """Render every prompt; one that cannot be asked has no ``ids`` and is written down, before the teacher is loaded."""
        from vold_nemo.data.rendering import Renderer, Room, admit, reach_of

        traces, teacher = self.config.traces, self.config.teacher
        positions, _ = reach_of(teacher.path, teacher.revision)
        room = Room(traces.max_tokens, "traces.max_tokens", positions, teacher.path)
        renderer, source = Renderer(self.tokenizer, thinking=teacher.thinking), str(dataset_of(self.config).path)
        admitted = admit(self.prompts, renderer, room, self.rejected, source, cache=self.config.data.cache)
        self._asked = {prompt.id: prompt.ids for prompt in admitted if prompt.id not in self.config.data.without}
        for prompt in admitted:
            if len(prompt.ids) > traces.max_prompt_tokens:
                reason = f"prompt: {len(prompt.ids)} tokens, more than traces.max_prompt_tokens"
                self.rejected.add(prompt.id, reason, prompt.messages[-1]["content"], "prompts", bad=False, name=prompt.id)
                self._asked.pop(prompt.id, None)

    def _ask(self, prompt: Prompt) -> EnginePrompt | None:
        found = self._asked.get(prompt.id)
        if found is None:
            return None
        ids = found.tolist()
        # The key ties a prompt's random numbers to its id: they do not depend on its place, its batch or its shard.
        key = int.from_bytes(hashlib.sha256(prompt.id.encode("utf-8", "replace")).digest()[:8], "little")
        return EnginePrompt(ids, prompt.images, key)

    def _answered(self, prompt: Prompt, done: Completion) -> dict[str, Any]:
        kept = done.finish_reason == "stop"
        text = self.tokenizer.decode(done.ids, skip_special_tokens=True) if kept else None
        return _row(prompt, done.sample, text, done.ids if kept else None, len(done.ids), done.finish_reason)


def _grouped(answers: Iterable[Completion]) -> Iterator[list[Completion]]:
    block, since = [], time.monotonic()
    for answer in answers:
        block.append(answer)
        if len(block) >= BLOCK or time.monotonic() - since > SECONDS:
            yield block
            block, since = [], time.monotonic()
    if block:
        yield block


def _row(
    prompt: Prompt, sample: int, text: str | None, ids: list[int] | None, tokens: int | None, finish: str
) -> dict[str, Any]:
    row = {"id": prompt.id, "sample": sample, "messages": prompt.messages, "response": text, "response_ids": ids}
    row |= {"response_tokens": tokens, "finish": finish}
    return {**row, "source": prompt.source} if prompt.source is not None else row
