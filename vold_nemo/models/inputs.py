"""What a stage reads from disk, in the order in which it asks: tokenizers, traces or prompts, weights, the rollout engine.

:mod:`models.stages` takes it as an object, so that somebody else can hand in the same without files (``rehearsal/``).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from vold_nemo.checkpoint import lineage, loading, run_lock
from vold_nemo.checkpoint.run_folder import Run
from vold_nemo.config import Config
from vold_nemo.config.launcher import launch
from vold_nemo.config.writing import writing
from vold_nemo.data import known_rows
from vold_nemo.data.prompts import Prompt, load_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rendering import Renderer, Room, admit
from vold_nemo.data.templates import eos_ids, load_tokenizer, render_prompt
from vold_nemo.data.token_cache import stored_traces
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.megatron import architecture, weights
from vold_nemo.megatron.adoption import agree
from vold_nemo.models.sampling import Sampler
from vold_nemo.models.sft import MegatronSFTModel
from vold_nemo.models.validation import split_off_validation
from vold_nemo.models.vold import MegatronVOLDModel
from vold_nemo.rewards import alarms
from vold_nemo.rewards.answer_keys import refusal
from vold_nemo.rewards.key_forms import report_keys
from vold_nemo.rollout.build import build_engine
from vold_nemo.rollout.engine import RolloutEngine
from vold_nemo.rollout.images import widening_of

Adopted = dict[int, tuple[int, ...]]


class _Inputs:
    """What both stages ask for alike."""

    source = staticmethod(weights.Files)
    config: Config
    folder: Path  # of the run

    def alone(self, rank: int) -> AbstractContextManager[None]:
        """The run folder, locked against other runs.  Collective."""
        return run_lock.held(self.folder, rank)

    def run(self, layout) -> Run:
        return Run(self.folder, rank=layout.rank, config=self.config, logging=self.config.logging)


class SFTInputs(_Inputs):
    """Of stage 1, whose run folder is ``<outputs>/<sft.run>``."""

    model = MegatronSFTModel

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.outputs) / config.sft.run
        self.tokenizer = load_tokenizer(config.student.path, config.student.revision)

    def agree(self, model: MegatronSFTModel) -> tuple[Adopted, VocabularyContract]:
        """See :func:`vold_nemo.megatron.adoption.agree`."""
        rows, padded = model.architecture.vocabulary, model.padded_vocabulary
        return agree(self.config, self.tokenizer, rows, [], padded=padded)

    def examples(self, contract: VocabularyContract, layout) -> tuple[Sequence[Any], list[dict] | None]:
        """The traces as examples, and who wrote them."""
        config, place = self.config, launch()
        examples = stored_traces(
            config, self.tokenizer, contract.shared.tolist(), self.folder / "rejected.jsonl", rank=layout.rank,
            local_rank=place.local_rank,
        )  # fmt: skip
        traces = examples.counts.origins
        if layout.rank == 0:
            print(f"{examples.counts.describe()}\nrun folder: {self.folder}")
            teachers = [one.path for one in (config.teacher, *config.teachers.values())]
            _warn(lineage.strangers(traces, teachers) if config.objective.kl.enabled else None)
        return examples, traces


class VOLDInputs(_Inputs):
    """Of stage 2, which starts from ``vold.start`` and whose run folder is ``<outputs>/<vold.run>``."""

    model = MegatronVOLDModel

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.outputs) / config.vold.run
        self.tokenizer, self.limits = load_tokenizer(config.vold.start), None
        self.rejected: Rejected | None = None
        self.scorers = [config.teacher, *config.teachers.values()] if config.objective.kl.enabled else []

    def engine(self, device: torch.device) -> RolloutEngine:
        start = self.config.vold.start
        engine = build_engine(self.config, start, device, eos_ids(start, self.tokenizer))
        self.limits = getattr(engine, "limits", None)
        return engine

    def agree(self, model: MegatronVOLDModel) -> tuple[Adopted, VocabularyContract]:
        """See :func:`vold_nemo.megatron.adoption.agree`."""
        rows, padded = model.architecture.vocabulary, model.padded_vocabulary
        return agree(self.config, self.tokenizer, rows, self.scorers, padded=padded)

    def prompts(self, contract: VocabularyContract, layout) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
        """Training prompts, and held-out questions by name."""
        config, first = self.config, layout.rank == 0
        rejected = Rejected(self.folder / "rejected.jsonl" if first else None, config.data.max_rejected_share)
        self.rejected = rejected
        without, verifier, cache = config.data.without, config.reward.verifier, config.data.cache
        prompts = load_prompts(
            config.data.prompts, config.data.system_prompt, rejected, instruction=config.data.instruction,
            refuse=refusal(config.reward), verifier=config.reward.verifier,
            listed=config.reward.verifiers,
        )  # fmt: skip
        renderer, source = Renderer(self.tokenizer), str(config.data.prompts.path)
        prompts = admit(
            prompts, renderer, self.room(config.rollout.max_tokens, "rollout.max_tokens", trained=True), rejected, source,
            cache=cache, without=without, writes=first,
        )  # fmt: skip
        prompts = self.known(prompts, first)
        prompts, validation = split_off_validation(prompts, config, rejected)
        room = self.room(config.vold.validation.max_tokens, "vold.validation.max_tokens")
        for name, asked in validation.items():
            asked = [prompt for prompt in asked if prompt.id not in without]
            validation[name] = admit(
                asked, renderer, room, rejected, f"vold.validation, {name}", cache=cache, writes=first
            )
        if first:
            if rejected.count():
                print(f"rejected {rejected.count()} rows ({rejected.summary()}): {rejected.path}")
            said = report_keys(((p.id, p.answer, p.verifier) for p in prompts if p.id not in without), verifier)
            for report in said:
                print("\n".join(report.describe()))
                for warning in (*report.warnings(), alarms.of_keys(report)):
                    _warn(warning)
            wrote = lineage.read(config.vold.start).get("traces")
            _warn(lineage.strangers(wrote, [one.path for one in self.scorers]) if self.scorers else None)
            held_out = ", ".join(f"{len(asked)} {name}" for name, asked in validation.items()) or "no"
            print(f"{contract.describe()}\n{len(prompts)} prompts, {held_out} questions for validation")
            print(f"run folder: {self.folder}")
        return prompts, validation

    def room(self, answer: int, key: str, *, trained: bool = False) -> Room:
        """What the engine can be asked; with ``trained``, what the teachers can read besides."""
        limits, start = self.limits, self.config.vold.start
        if limits is None:
            return Room(answer, key)
        rooms = {start: limits.positions}
        if trained:
            rooms |= {one.path: architecture.read(one.path).max_positions for one in self.scorers}
        least = min(rooms, key=rooms.__getitem__)
        image = limits.image_token
        return Room(answer, key, rooms[least], least, image, widening_of(start, image) if image is not None else None)

    def known(self, prompts: list[Prompt], first: bool) -> list[Prompt]:
        """The rows that the run began with, where it goes on from a checkpoint; else these, which are written down."""
        config, checkpoints = self.config, self.folder / "checkpoints"
        goes_on = config.checkpoint.resume != "never" and loading.find_latest(checkpoints) is not None
        if goes_on and first and config.data.without:
            named = ", ".join(config.data.without[:8])
            _warn(f"this run goes on without {len(config.data.without)} rows (data.without): {named}")
        began = known_rows.read(self.folder) if goes_on else None
        known = {prompt.id for prompt in prompts} | {name for name, _ in began or ()}
        if first and (unknown := [name for name in config.data.without if name not in known]):
            _warn(f"data.without: {', '.join(unknown[:8])} stand for no row of data.prompts")
        if began is not None:
            return known_rows.restore(prompts, began, config.data.without)
        if first and not goes_on:
            with writing("outputs", self.folder):
                known_rows.write(self.folder, prompts)
        return prompts

    def texts(self, prompts: Sequence[Prompt], count: int) -> list[list[int]]:
        """``count`` prompts as the student reads them, at most: what an FP8 teacher is probed with."""
        asked = (prompt for prompt in prompts if prompt.id not in self.config.data.without)
        ids = (render_prompt(self.tokenizer, one) if one.ids is None else one.ids.tolist() for one in asked)
        return list(itertools.islice(ids, count))

    def sampler(
        self, engine: RolloutEngine, prompts: list[Prompt], validation: dict[str, list[Prompt]], layout
    ) -> Sampler:
        return Sampler(engine, self.tokenizer, prompts, validation, self.config, layout, self.rejected)


def _warn(warning: str | None) -> None:
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
