"""What a rehearsed stage is handed instead of files: weights of published shapes, and text of the planned lengths.

Lengths are those that ``plan.*`` supposes.  In each group of rollouts one answer runs to the limit and is wrong; the others
spread around what is then left of the mean, right at the planned rate.  Of the traces every eighth is as long as is allowed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vold_nemo.checkpoint.run_folder import Run
from vold_nemo.checkpoint.sharded import Staged, model_state
from vold_nemo.config import Config
from vold_nemo.data.order import Order
from vold_nemo.data.traces import SFTExample
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.megatron import architecture
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.names import placements
from vold_nemo.megatron.tensors import Entry
from vold_nemo.models.sampling import Sampler
from vold_nemo.models.sft import MegatronSFTModel
from vold_nemo.models.vold import MegatronVOLDModel
from vold_nemo.planning import memory
from vold_nemo.planning.memory import Models
from vold_nemo.rehearsal.values import UNKNOWN
from vold_nemo.rehearsal.watch import Watch
from vold_nemo.rollout.engine import LoadReport
from vold_nemo.rollout.fingerprints import WHOLE, Fingerprints, Part
from vold_nemo.rollout.shares import Box, share
from vold_nemo.step import MicroBatch, Step, StepPlan, make_plan
from vold_nemo.step.table import Ragged

WORD, END = 100, 151645  # an ordinary id, and the end of sequence of Qwen's tokenizers
LONG = 8  # every so many traces one is as long as is allowed
GOLDEN = 0.6180339887  # its multiples spread evenly over [0, 1)


class Shapes:
    """:class:`vold_nemo.megatron.weights.Source` without files: tensors of the right shapes on the host, without values."""

    def __init__(self, arch: Architecture, name: str, watch: Watch):
        self.architecture, self.folder, self._watch = arch, Path(name), watch
        self.entries: dict[str, Entry] = {}
        for place in placements(arch, 1, arch.vocabulary):
            for tensor, shape in zip(place.hf, place.shapes, strict=True):
                self.entries[tensor] = Entry(self.folder, "BF16", tuple(shape), 0, 2 * int(np.prod(shape)))

    def slice(self, name: str, axis: int, start: int, size: int) -> Tensor:
        shape = list(self.entries[name].shape)
        shape[axis] = size
        return self._read(shape)

    def expert(self, name: str, expert: int, transposed: bool) -> Tensor:
        shape = self.entries[name].shape[1:]
        return self._read(shape[::-1] if transposed else shape)

    def _read(self, shape: Sequence[int]) -> Tensor:
        return self._watch.on_host(shape, torch.bfloat16)


class _NoTokenizer:
    """Renders nothing: every prompt is made of :data:`WORD`."""

    eos_token_id = END


class _Inputs:
    """What both stages are handed alike."""

    def __init__(self, config: Config, watch: Watch, folder: Path):
        self.config, self.folder, self.watch = config, folder, watch

    def source(self, path: str) -> Shapes:
        return Shapes(architecture.read(path), path, self.watch)

    def alone(self, rank: int):
        """Nobody else knows of the folder."""
        return contextlib.nullcontext()

    def run(self, layout) -> Run:
        return Run(self.folder, rank=layout.rank)


def contract_of(student: int, teachers: Sequence[int], padded: int) -> VocabularyContract:
    """As if all tokenizers had every id that all tables have."""
    rows = torch.arange(padded)
    shared = min((student, *teachers))
    return VocabularyContract(
        padded, student, max(teachers, default=None) if teachers else None, rows < student, rows < shared, {}, {}
    )


def adopted_rows(config: Config) -> dict[int, tuple[int, ...]]:
    """As many as Qwen3 has beyond Qwen2.5, each the mean of three."""
    return {END + 20 + n: (27, WORD, 29) for n in range(4)} if config.tokenizer.adopt_teacher_tokens else {}


def _kept(batches: list[MicroBatch], most: int | None, multiple: int = 1) -> list[int]:
    """Indices of those that are run, in their order: the longest, of each teacher and unscored ones in turn.

    ``multiple``: what the plan made every kind's number a multiple of, and is so of those that are kept.
    """
    kinds = sorted({(not batch.scored, batch.teacher) for batch in batches})
    by_kind = [[i for i, batch in enumerate(batches) if (not batch.scored, batch.teacher) == kind] for kind in kinds]
    if most is not None and multiple > 1:
        most = -(-most // (multiple * len(kinds))) * multiple * len(kinds)
    if most is None or len(batches) <= most:
        return list(range(len(batches)))
    for kind in by_kind:
        kind.sort(key=lambda i: -batches[i].ids.numel())
    turns = [index for pair in zip(*by_kind, strict=False) for index in pair]
    turns += [index for kind in by_kind for index in kind if index not in turns]
    return sorted(turns[:most])


class OneStep:
    """Of a student: one step, cut to ``rehearse.micro_batches``; checkpoints go as far as the files of their tensors."""

    @property
    def total_steps(self) -> int:
        return 1

    def share(self, batches: Sequence[MicroBatch], what: str) -> list[MicroBatch]:
        asked = self.config.rehearse.micro_batches
        # As many as a pipeline has in flight at once: fewer would hide its peak.
        flying = self.layout.pipeline * (2 if self.layout.virtual > 1 else 1)
        kept = _kept(list(batches), None if asked is None else max(asked, flying), self.layout.micro_batch_multiple)
        self.cut_short.append((list(batches), [batches[index] for index in kept]))
        return super().share([batches[index] for index in kept], what)

    @property
    def cut_short(self) -> list[tuple[list[MicroBatch], list[MicroBatch]]]:
        """(all, those that are run) of each update."""
        return self.__dict__.setdefault("_cut_short", [])

    def save_checkpoint(self, run, done: int, metrics, *, needed: bool) -> None:
        """As the first of an attempt is written, which training waits for, and as those after it are, up to the files."""
        from vold_nemo.checkpoint.loading import Retention
        from vold_nemo.checkpoint.saving import Snapshot
        from vold_nemo.megatron.pinned import Room

        for room in (None, Room()) if self.config.checkpoint.asynchronous else (None,):
            snapshot = Snapshot(
                run.checkpoints, done, self.training_state, retention=Retention.of(self.config.checkpoint), room=room
            )
            for name in ("shards", "ranks"):  # rank 0 makes them, and may be another
                (snapshot.aside / name).mkdir(parents=True, exist_ok=True)
            snapshot.write()

    def describe_attempt(self, run, found) -> None:
        """Of no run."""

    def save_archive(self, run, done: int) -> None:
        Staged({"model": model_state(self.gpt)})


class RehearsedSFT(OneStep, MegatronSFTModel):
    """Stage 1."""


class RehearsedVOLD(OneStep, MegatronVOLDModel):
    """Stage 2."""

    _synced = False

    def engine_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The first sync, before any step, does what the next one does, round by round: its first layers stand for it."""
        whole, self._synced = self._synced, True
        for name, tensor in super().engine_weights():
            if not whole and ".layers.1." in name:
                return
            yield name, tensor

    def plan(self, step: Step) -> StepPlan:
        """Made here: rank 0, which makes it in a run, may be another rank."""
        return make_plan(step, self.options)

    def attach_teachers(self, teachers, contract, eos_ids: Sequence[int] = ()) -> None:
        super().attach_teachers(teachers, contract, eos_ids)
        score = teachers.hidden_states

        def hidden_states(batches: Sequence[MicroBatch]) -> HiddenStates:
            rest = self._of_those_cut(teachers)  # they are there before the last one is scored, and the teacher leaves
            return HiddenStates(score(batches), rest)

        teachers.hidden_states = hidden_states

    def _of_those_cut(self, teachers) -> Tensor | None:
        """Hidden states of the micro-batches that are not run: they would be there, too, until the loss has met them."""
        if not self.layout.is_last_stage or not teachers:
            return None
        every, run = self.cut_short[-1]
        size, split = 0, self.layout.context * (self.layout.tensor if self.layout.sequence else 1)
        for batch in every:
            if batch.scored and not any(batch is one for one in run):
                member = teachers.members[batch.teacher]
                kind = 4 if member.precision.dtype == "fp32" else 2
                size += batch.ids.numel() // split * member.architecture.hidden * kind
        return torch.empty(size, dtype=torch.uint8, device=self.layout.device) if size else None


class HiddenStates(list):
    """Those of the micro-batches that are run; ``rest``: bytes of the others', which live as long."""

    def __init__(self, states: list, rest: Tensor | None):
        super().__init__(states)
        self.rest = rest


class SFTInputs(_Inputs):
    """Of stage 1."""

    model = RehearsedSFT

    def agree(self, model) -> tuple[dict, VocabularyContract]:
        self.built = model
        return adopted_rows(self.config), contract_of(model.architecture.vocabulary, [], model.padded_vocabulary)

    def examples(self, contract, layout) -> tuple[list[SFTExample], None]:
        plan, longest = self.config.plan, self.config.sft.max_length
        count, mean = self.config.sft.batch, min(plan.prompt_tokens + plan.trace_tokens, longest)
        long = min(count, max(layout.data, -(-count // LONG)))
        return [
            _example(number, length, min(plan.prompt_tokens, length - 1))
            for number, length in enumerate(lengths(count, long, mean, longest, least=2))
        ], None


def _example(number: int, length: int, prompt: int) -> SFTExample:
    return SFTExample(np.full(length, WORD, dtype=np.int32), prompt, f"{number}/0")


def lengths(count: int, long: int, mean: int, longest: int, *, least: int = 1) -> list[int]:
    """``count`` lengths of about that mean, ``long`` of them ``longest``, spread over the list."""
    rest = max(1, count - long)
    left = min(longest, max(least, (mean * count - long * longest) / rest))
    wide = min(left - least, longest - left)
    found = [round(left + wide * (2 * (GOLDEN * n % 1) - 1)) for n in range(count)]
    for n in range(long):
        found[n * count // long] = longest
    return found


class VOLDInputs(_Inputs):
    """Of stage 2."""

    model = RehearsedVOLD

    def __init__(self, config: Config, watch: Watch, folder: Path, models: Models, gpus: int):
        super().__init__(config, watch, folder)
        self.models, self.gpus = models, gpus

    def engine(self, device: torch.device) -> Engine:
        return Engine(self.config, self.models, self.gpus, device)

    def agree(self, model) -> tuple[dict, VocabularyContract]:
        self.built = model
        teachers = [arch.vocabulary for arch in self.models.teachers]
        return adopted_rows(self.config), contract_of(model.architecture.vocabulary, teachers, model.padded_vocabulary)

    def prompts(self, contract, layout) -> tuple[list, dict[str, list]]:
        names = [*self.config.teachers]
        count = self.config.vold.prompts_per_step
        return [SimpleNamespace(id=str(n), source=None, teacher=([None, *names] * count)[n]) for n in range(count)], {}

    def texts(self, prompts: Sequence, count: int) -> list[list[int]]:
        return [[WORD] * self.config.plan.prompt_tokens] * count

    def sampler(self, engine: Engine, prompts: list, validation: dict, layout) -> PlannedSampler:
        return PlannedSampler(engine, prompts, self.config, layout)


class Engine:
    """As much of the device as ``rollout.engine`` takes, asleep and awake; it samples nothing.

    vLLM keeps its cache unless it sleeps; transformers makes one for each batch.
    """

    stop_ids = (END,)

    def __init__(self, config: Config, models: Models, gpus: int, device: torch.device):
        self.dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
        self.device, self.version, self._keeps_cache = device, 0, config.rollout.engine == "vllm"
        self._ranks = config.rollout.vllm.tensor_parallel if config.rollout.engine == "vllm" else 1
        self._groups = models.student.kv_groups
        self._weights = torch.empty(memory.engine_weights(config, models), dtype=torch.uint8, device=device)
        sampled = config.vold.prompts_per_step * config.rollout.samples_per_prompt
        rows, longest = min(config.rollout.batch, -(-sampled // gpus)), config.plan.prompt_tokens + config.rollout.max_tokens
        self._host: Tensor | None = None  # the weights, once it has slept
        self._cache_size = memory.rollout_cache(config, models, rows, longest)
        self._cache = torch.empty(self._cache_size if self._keeps_cache else 0, dtype=torch.uint8, device=device)

    def generate(self, prompts=(), sampling=None, *, expect_version=None, progress=None) -> list:
        self._cache.untyped_storage().resize_(self._cache_size)
        if not self._keeps_cache:
            self._cache.untyped_storage().resize_(0)
        return []

    def keeps(self, name: str, shape: Sequence[int], rank: int) -> Box:
        return share(name, shape, rank % self._ranks, self._ranks, self._groups)

    def room(self, name: str) -> None:
        """It has no tensors, only memory."""

    @torch.no_grad()
    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int, part: Part = WHOLE) -> LoadReport:
        size, live = 0, Fingerprints(part, totals=True)
        for name, tensor in named_tensors:
            # Where it would lie does not matter to a copy without values.
            self._weights[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            live.add(name, tensor)
            size += tensor.nbytes
        live.not_finite()
        self.version = version
        return LoadReport(size, 1.0, live, version)

    def sleep(self) -> None:
        self._host = torch.empty(self._weights.numel(), dtype=torch.uint8, pin_memory=True).copy_(self._weights)
        self._weights.untyped_storage().resize_(0)
        self._cache.untyped_storage().resize_(0)

    def wake(self) -> None:
        if self._host is None:
            return
        self._weights.untyped_storage().resize_(self._weights.numel())
        self._weights.copy_(self._host, non_blocking=True)

    def device_bytes(self) -> int:
        return self._weights.untyped_storage().nbytes() + self._cache.untyped_storage().nbytes()

    def close(self) -> None:
        pass


class PlannedSampler(Sampler):
    """Rollouts of the planned lengths, judged at the planned rate; the whole world's on this rank."""

    def __init__(self, engine: Engine, prompts: list, config: Config, layout):
        self.engine, self.prompts, self.validation, self.config, self.layout = engine, prompts, {}, config, layout
        self.tokenizer, self.skipped, self.rejected = _NoTokenizer(), {}, None
        self.order = Order(len(prompts), config.vold.prompts_per_step, config.seed)
        self.end = min(END, architecture.read(config.student.path).vocabulary - 1)  # a small student has fewer ids

    def answer(self, number: int, asked: Mapping[int, int], attempt: int = 0) -> Step:
        self.engine.generate(expect_version=number)
        plan, samples, groups = self.config.plan, self.config.rollout.samples_per_prompt, len(asked)
        longest, rollouts = self.config.rollout.max_tokens, groups * samples
        long = min(rollouts, max(groups if samples > 1 else -(-groups // LONG), self.layout.data))
        each = torch.tensor(lengths(rollouts, long, min(plan.response_tokens, longest), longest))
        flat = torch.full((int(each.sum()),), WORD, dtype=torch.int32)
        ends = each.cumsum(0)
        flat[ends[each < longest] - 1] = self.end
        prompts = torch.full((groups, plan.prompt_tokens), WORD, dtype=torch.int32)
        step = Step(
            Ragged.of_tensors(list(prompts)), Ragged(flat, torch.cat([ends.new_zeros(1), ends])), samples
        )
        indices = list(asked.values())
        step["engine"] = torch.full((len(flat),), UNKNOWN)  # as the trainer's, where their gap is asked for
        step["prompt"] = torch.tensor(indices).repeat_interleave(samples)
        step["sample"] = torch.arange(samples).repeat(groups)
        step["truncated"] = each == longest
        names = [None, *self.config.teachers]
        step["scorer"] = torch.tensor([names.index(self.prompts[i].teacher) for i in indices]).repeat_interleave(samples)
        step["version"] = number
        return step

    def verify(self, step: Step) -> dict[str, Any]:
        rollouts, finished = len(step), ~step.column("truncated")
        rate = min(1.0, self.config.plan.reward_rate * rollouts / max(1, int(finished.sum())))
        right = (torch.arange(rollouts) * GOLDEN % 1 < rate) & finished
        step["reward"] = right.double()
        return {}

    def validate(self, step: int) -> dict[str, Any]:
        if self.config.vold.validation.every:
            self.engine.generate()
        return {}

    def records(self, step: int) -> bool:
        return False

    def name(self, step: Step, row: int) -> str:
        return str(int(step["prompt"][row]))

    def data_name(self) -> str:
        return "rehearsal"

    def close(self) -> None:
        pass
