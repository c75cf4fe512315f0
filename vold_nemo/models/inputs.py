"""What a stage reads from disk, in the order in which it asks: tokenizers, traces or prompts, weights, the rollout engine.

:mod:`models.stages` takes it as an object, so that somebody else can hand in the same without files (``rehearsal/``).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vold_nemo.checkpoint import lineage
from vold_nemo.checkpoint.run_folder import Run
from vold_nemo.config import Config
from vold_nemo.config.launcher import launch
from vold_nemo.data.prompts import Prompt, load_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.templates import eos_ids, load_tokenizer, render_prompt
from vold_nemo.data.token_cache import stored_traces
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.megatron import weights
from vold_nemo.megatron.adoption import agree
from vold_nemo.models.sampling import Sampler
from vold_nemo.models.sft import MegatronSFTModel
from vold_nemo.models.validation import split_off_validation
from vold_nemo.models.vold import MegatronVOLDModel
from vold_nemo.rewards.answer_keys import refusal
from vold_nemo.rollout.build import build_engine
from vold_nemo.rollout.engine import RolloutEngine

Adopted = dict[int, tuple[int, ...]]


class SFTInputs:
    """Of stage 1, whose run folder is ``<outputs>/<sft.run>``."""

    model = MegatronSFTModel
    source = staticmethod(weights.Files)

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

    def run(self, layout) -> Run:
        return Run(self.folder, rank=layout.rank, config=self.config, logging=self.config.logging)


class VOLDInputs:
    """Of stage 2, which starts from ``vold.start`` and whose run folder is ``<outputs>/<vold.run>``."""

    model = MegatronVOLDModel
    source = staticmethod(weights.Files)

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.outputs) / config.vold.run
        self.tokenizer = load_tokenizer(config.vold.start)
        self.scorers = [config.teacher, *config.teachers.values()] if config.objective.kl.enabled else []

    def engine(self, device: torch.device) -> RolloutEngine:
        start = self.config.vold.start
        return build_engine(self.config, start, device, eos_ids(start, self.tokenizer))

    def agree(self, model: MegatronVOLDModel) -> tuple[Adopted, VocabularyContract]:
        """See :func:`vold_nemo.megatron.adoption.agree`."""
        rows, padded = model.architecture.vocabulary, model.padded_vocabulary
        return agree(self.config, self.tokenizer, rows, self.scorers, padded=padded)

    def prompts(self, contract: VocabularyContract, layout) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
        """Training prompts, and held-out questions by name."""
        config, first = self.config, layout.rank == 0
        rejected = Rejected(self.folder / "rejected.jsonl" if first else None, config.data.max_rejected_share)
        prompts = load_prompts(
            config.data.prompts, config.data.system_prompt, rejected, instruction=config.data.instruction,
            refuse=refusal(config.reward.verifier),
        )  # fmt: skip
        prompts, validation = split_off_validation(prompts, config, rejected)
        if first:
            wrote = lineage.read(config.vold.start).get("traces")
            _warn(lineage.strangers(wrote, [one.path for one in self.scorers]) if self.scorers else None)
            held_out = ", ".join(f"{len(asked)} {name}" for name, asked in validation.items()) or "no"
            print(f"{contract.describe()}\n{len(prompts)} prompts, {held_out} questions for validation")
            print(f"run folder: {self.folder}")
        return prompts, validation

    def texts(self, prompts: Sequence[Prompt], count: int) -> list[list[int]]:
        """``count`` prompts as the student reads them, at most: what an FP8 teacher is probed with."""
        return list(itertools.islice((render_prompt(self.tokenizer, prompt) for prompt in prompts), count))

    def sampler(
        self, engine: RolloutEngine, prompts: list[Prompt], validation: dict[str, list[Prompt]], layout
    ) -> Sampler:
        return Sampler(engine, self.tokenizer, prompts, validation, self.config, layout)

    def run(self, layout) -> Run:
        return Run(self.folder, rank=layout.rank, config=self.config, logging=self.config.logging)


def _warn(warning: str | None) -> None:
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
