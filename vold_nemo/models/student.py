"""The student as a NeMo model: a ``ModelPT`` around the language backbone in megatron-core.

``ModelPT`` gives configuration, ``.nemo`` save and restore, and the place where NeMo users look for things.  The training loop
(:meth:`MegatronStudent.fit`) is ours, in NeMo-Aligner's shape, around megatron-core's schedules: Lightning's ``Trainer.fit``
is never called, because it knows neither pipeline stages nor rollouts.

Only the language model is here.  The vision tower stays in the source checkpoint, byte for byte, until export; the rollout
engine, which sees images, holds the whole model and is fed from the same tables of names.
"""

from __future__ import annotations

import logging
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nemo.core.classes import ModelPT
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vold_nemo.checkpoint import attempts, loading, nemo_archive, saving, sharded
from vold_nemo.checkpoint.run_folder import Run
from vold_nemo.config import Config, ConfigError, OptimizerConfig, to_config
from vold_nemo.config.launcher import STOPPED_BY_SIGNAL
from vold_nemo.config.literal import literal
from vold_nemo.config.writing import Forgiving
from vold_nemo.megatron import architecture, build, parallel, sequences, training, weights
from vold_nemo.megatron.optimizer import LearningRate, build_optimizer
from vold_nemo.models import resuming
from vold_nemo.models.heartbeat import Heartbeat
from vold_nemo.models.profiling import Profiler
from vold_nemo.models.rank_checks import assert_same
from vold_nemo.models.stopping import Stop
from vold_nemo.models.stragglers import slowest
from vold_nemo.step import MicroBatch
from vold_nemo.step.batches import fingerprint

logger = logging.getLogger(__name__)


class MegatronStudent(ModelPT):
    """Language backbone of the student: this rank's tensor shard of this rank's pipeline stage.

    ``megatron.parallel.initialize`` must have run.  A new model has no weights yet: call :meth:`load_pretrained`, or use
    ``restore_from`` on a ``.nemo`` file of any layout.  Subclasses say what one step is.

    Args:
        cfg: the whole configuration (``config.Config`` as an OmegaConf tree).
        trainer: as NeMo's ``restore_from`` passes it on; not used.
    """

    verb: str  # the recipe, and the stage's section of the configuration
    nemo_folders: tuple[str, ...] = ("student.path",)  # kept in the .nemo file: tokenizer, processor, config.json

    def __init__(self, cfg: DictConfig, trainer=None):
        super().__init__(cfg=cfg, trainer=trainer)
        self.config = typed(cfg)
        self.layout = parallel.current()
        self.architecture = architecture.read(self.source_path())
        self.padded_vocabulary = architecture.padded_vocabulary(self.vocabulary_rows(), self.layout.tensor)
        self.dtype_in_training = torch.float32 if self.config.precision == "fp32" else torch.bfloat16
        self.gpt = build.build_model(
            self.architecture, self.layout, padded_vocabulary=self.padded_vocabulary, dtype=self.dtype_in_training,
            recompute=self.config.parallel.recompute,
        )  # fmt: skip
        nemo_archive.attach(self, self.layout)
        self.optimizer_in_training = None  # with its schedule, set by prepare_for_training
        self.lineage: dict[str, Any] = {}  # see checkpoint/lineage.py; set by `attach`
        self.attempt: dict[str, Any] = {}  # see checkpoint/attempts.py; set by `resume`
        self.archive_about: dict[str, Any] = {}  # what the manifest of a .nemo file says: step, attempt, which checkpoint
        self.own_seconds: dict[str, float] = {}  # of this step and rank, without waiting for others (stragglers.py)

    # -- what the two stages differ in -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def optimizer_config(self) -> OptimizerConfig:
        """The stage's own section of the configuration."""

    @property
    @abstractmethod
    def total_steps(self) -> int: ...

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in one :meth:`train_step`."""
        return 1

    def data_names(self) -> list[str]:
        """:meth:`data_name`, and what it was called by versions before."""
        return [self.data_name()]

    def data_name(self) -> str:
        """What decides the data of every step, hashed: a position in other data is no position."""
        return ""

    @abstractmethod
    def train_step(self, number: int) -> dict[str, Any]:
        """Do step ``number`` (from 0) and return its metrics.  Collective over the world."""

    def extra_state(self) -> dict[str, Any]:
        """What the stage itself adds to a checkpoint."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`extra_state` left, on a resume."""

    def source_path(self) -> str:
        """Hugging Face folder that names the architecture."""
        return self.config.student.path

    def vocabulary_rows(self) -> list[int]:
        """Rows of every LM head that must line up with the student's."""
        return [self.architecture.vocabulary]

    # -- weights -----------------------------------------------------------------------------------------------------

    def load_pretrained(self, source: weights.Source, adopted: Mapping[int, Sequence[int]] | None = None) -> None:
        """Weights from a Hugging Face checkpoint (``weights.Files(path)``); each rank reads its own slices.

        ``adopted``: ids of the tokens that the student took over and what their rows start from (megatron/adoption.py).
        """
        weights.load_hf(self.gpt, self.architecture, self.layout, source)
        weights.adopt_rows(self.gpt, self.architecture, self.layout, source, adopted or {})

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The stream of (name on disk, full tensor); collective, every rank must exhaust it."""
        return weights.stream_hf(self.gpt, self.architecture, self.layout)

    def save_weights(self, folder) -> None:
        sharded.save_model(self.gpt, folder)

    def load_weights(self, folder) -> None:
        sharded.load_model(self.gpt, folder)

    def share(self, batches: Sequence[MicroBatch], what: str) -> list[MicroBatch]:
        """This rank's slices of its data rank's micro-batches, which all ranks of the model copy are checked to hold alike."""
        assert_same(fingerprint(batches), self.layout, what)
        return [sequences.on_this_rank(batch, self.layout) for batch in batches]

    # -- one pass ----------------------------------------------------------------------------------------------------

    def prepare_for_training(self) -> None:
        """Wrap the model in DDP and make optimizer and schedule; allocates all that training needs."""
        config = self.optimizer_config
        self.stage = training.wrap_ddp(self.gpt, distributed_optimizer=config.distributed)
        self.optimizer_in_training = build_optimizer(config, self.stage)
        self.schedule = LearningRate(config, self.total_steps * self.updates_per_step)
        self.guard = training.NonFiniteGuard(config.max_skipped)

    @property
    def head(self) -> Tensor:
        """This rank's rows of the LM head, [v, H]; last stage only."""
        return build.lm_head_weight(self.gpt)

    def optimizer_step(self, step: int, passed: training.Pass, describe=str) -> training.Update:
        """Clip, step, advance the schedule; a non-finite gradient skips the update and is named (see NonFiniteGuard)."""
        self.own_seconds["train"] = self.own_seconds.get("train", 0.0) + passed.seconds
        update = training.update(self.optimizer_in_training, self.schedule, passed, layout=self.layout)
        self.guard.check(step, update, describe)
        return update

    # -- the loop ----------------------------------------------------------------------------------------------------

    def fit(self, run: Run) -> None:
        """Train to ``total_steps``, from where the run's newest checkpoint stands.

        Leaves ``student.nemo`` when done.  On USR1, TERM or Ctrl-C, or when ``limits.wall_minutes`` are nearly over, the
        step is finished, a checkpoint written, and the process leaves with 85: start again to go on.  A rank that hangs
        takes the run down with 86 (:mod:`models.heartbeat`); any other error names the step and phase it met.
        """
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        limits, every, first = self.config.limits, self.config.checkpoint.every, self.layout.rank == 0
        stuck, wall = (minutes * 60 if minutes else None for minutes in (limits.stuck_minutes, limits.wall_minutes))
        beat = Heartbeat(
            run.folder, rank=self.layout.rank, world=self.layout.world, limit=stuck, total=self.total_steps
        )
        with Profiler(self.config.profile, run.folder, self.layout) as profiler, beat as heart, run:
            heart.note("resume")
            start = self.resume(run)
            run.keep(self.lineage)
            if start >= self.total_steps:
                return self._nothing_to_do(run, heart, start)
            heart.note("resume", start)
            self.on_loop_start(start)
            bar = tqdm(
                total=self.total_steps, initial=start, desc=type(self).__name__, unit="step", disable=not first,
                file=Forgiving(sys.stderr),
            )  # fmt: skip
            self.writer = saving.Writer(later=self.config.checkpoint.asynchronous)
            profiler.go_on(start)
            with Stop(wall) as stop, self.writer, bar, logging_redirect_tqdm():
                for number in range(start, self.total_steps):
                    profiler.begin(number + 1)
                    heart.note("step", number)
                    self.own_seconds = {}
                    metrics = self.train_step(number)
                    if behind := slowest(self.own_seconds, self.layout):
                        metrics["slowest"] = behind
                    done = number + 1
                    run.log(done, metrics)
                    bar.set_postfix_str(self.progress_text(metrics), refresh=False)
                    bar.update(1)
                    heart.note("agree")  # where ranks wait for one that stays away
                    stop.reserve = self.writer.ahead
                    stopping = stop.agreed(self.layout.device)
                    last = stopping or done == self.total_steps
                    if last or (every and done % every == 0):
                        self.make_way()
                        heart.note("checkpoint")
                        self.save_checkpoint(run, done, metrics, needed=last)
                    profiler.end(done)
                    if stopping and done < self.total_steps:
                        if first:
                            reason = stop.reason or "another rank's signal"
                            logger.warning("stopped (%s) after step %d; to go on: %s", reason, done, resuming.command())
                        raise SystemExit(STOPPED_BY_SIGNAL)
            heart.note("export")
            self.save_archive(run, self.total_steps)

    def _nothing_to_do(self, run: Run, heart: Heartbeat, done: int) -> None:
        if self.layout.rank == 0:
            logger.info("nothing to do: the run has done %d of %d steps", done, self.total_steps)
        there = [self.layout.rank == 0 and resuming.archive_is_of(run, done)]
        dist.broadcast_object_list(there, src=0)  # one rank looks: a shared folder may show others an older state
        if not there[0]:
            heart.note("export")
            self.save_archive(run, done)

    def save_archive(self, run: Run, done: int) -> None:
        """``student.nemo`` of the checkpoint after ``done`` steps, whose weights are the model's.  Collective."""
        resuming.save_archive(self, run, done)

    def make_way(self) -> None:
        """Called before a checkpoint: what it does not need may leave the device."""

    def on_loop_start(self, step: int) -> None:
        """Called once, after a resume and before the first step."""

    def progress_text(self, metrics: dict[str, Any]) -> str:
        """What the progress bar shows."""
        return f"loss {metrics['loss']:.4f}"

    @property
    def training_state(self) -> loading.TrainingState:
        return loading.TrainingState(self.stage, self.optimizer_in_training, self.schedule, self.layout)

    def save_checkpoint(self, run: Run, done: int, metrics: dict[str, Any], *, needed: bool) -> None:
        """Write the state after ``done`` steps, behind training's back unless this one is ``needed``.

        Only then does a disk that is full end the run.  An attempt's first one is waited for, too: how long it takes is
        known from then on (``limits.wall_minutes``), and so is whether the folder can be written.
        """
        options, wait = self.config.checkpoint, needed or not self.writer.measured
        try:
            self.writer.save(
                run.checkpoints, done, self.training_state, wait=wait, retention=loading.Retention.of(options),
                extra={"data_position": done, "data": self.data_name(), **self.extra_state()},
                metric=number_at(metrics, options.metric),
                notes=({attempts.IN_CHECKPOINT: attempts.text(self.attempt)} if self.attempt else {}) | run.notes(),
            )  # fmt: skip
        except saving.CheckpointNotWritten as error:
            if needed:
                raise
            if self.layout.rank == 0:
                logger.error("%s; the ones before it are kept, and the run goes on", error)

    def resume(self, run: Run) -> int:
        """First step to do: after the newest whole checkpoint, or 0.

        Raises:
            ConfigError: ``checkpoint.resume=required`` and there is none, or none that is whole; a checkpoint of another layout
                or other data, or of a run that meant something else (checkpoint/attempts.py).
        """
        mode = self.config.checkpoint.resume
        found = loading.find_latest(run.checkpoints) if mode != "never" else None
        if found is None:
            if mode == "required":
                raise ConfigError(
                    "checkpoint.resume", mode, "a checkpoint in the run folder",
                    f"there is none in {run.checkpoints}: use checkpoint.resume=auto to start from step 0",
                )  # fmt: skip
            self.describe_attempt(run, None)
            run.begin(self.attempt)
            run.resume_at(0)
            return 0
        self.describe_attempt(run, found)
        step, extra = loading.load(found, self.training_state, reshard=self.config.checkpoint.reshard)
        if "data" in extra and extra["data"] not in self.data_names():
            raise ConfigError(
                "data", "not what this run began with", "the same rows, seed, batch size and mixture to go on with",
                "restore them, or go on without those that are rejected now (rejected.jsonl): data.without=[ids]; or start a "
                f"new run from the exported weights of {found}",
            )  # fmt: skip
        self.load_extra_state(extra)
        run.begin(self.attempt)
        run.resume_at(step, found)
        if self.layout.rank == 0:
            logger.info("resumed from %s", found)
        return step

    def describe_attempt(self, run: Run, found: Path | None) -> None:
        """Set ``attempt``, which goes on from ``found`` (None = from nothing), unless it may not.  Collective."""
        self.attempt = resuming.attempt(self, run, found)

    # -- what ModelPT asks for: data comes through the recipes, not through Lightning's loaders ----------------------------

    def setup_training_data(self, train_data_config) -> None:
        """Data is handed to the subclass's constructor-like ``attach``; there is no Lightning loader."""

    def setup_validation_data(self, val_data_config) -> None:
        """See :meth:`setup_training_data`."""

    @classmethod
    def list_available_models(cls) -> list:
        """No weights are published."""
        return []


def number_at(metrics: dict[str, Any], name: str) -> float | None:
    """``metrics["seconds"]["train"]`` for ``"seconds.train"``; None where this step has no such number."""
    value: Any = metrics
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else None


def typed(cfg: DictConfig) -> Config:
    """The configuration without what NeMo adds to it."""
    plain = OmegaConf.create(literal(OmegaConf.to_container(cfg, resolve=True)))
    for key in ("target", "nemo_version"):
        plain.pop(key, None)
    return to_config(plain)
