"""A run's folder and what is written into it while it goes.

    outputs/<run>/config.yaml      the resolved configuration of the newest attempt
                  attempts/        what each start ran under (attempts.py)
                  run.lock         while a process writes here (run_lock.py)
                  metrics.jsonl    one JSON object a step
                  tensorboard/     the same numbers, and what exp_manager notes (command line, git state)
                  lineage.json     where the student comes from (checkpoint/lineage.py)
                  checkpoints/     (checkpoint.py)

``exp_manager`` of NeMo makes the folder and the loggers, and nothing else: no ModelCheckpoint, no resuming, no
pre-emption callback.  The Lightning trainer it wants is never fitted, and is told its environment, so that Lightning does
not look for Slurm: its Slurm plugin would take the signals that stop a run in good order.
"""

from __future__ import annotations

import json
import logging as log
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vold_nemo.checkpoint import attempts, lineage
from vold_nemo.checkpoint.journal import Journal
from vold_nemo.checkpoint.run_lock import still_ours
from vold_nemo.config import LoggingConfig
from vold_nemo.config.writing import replace_text, writing

logger = log.getLogger(__name__)

MISSED = "missed_metrics.jsonl"  # in a checkpoint: lines that found no room in the run's own file
_RETRY = 30.0  # seconds between two tries to begin a logger again
# Of replace_text, and of rollouts, in a process that was killed
_LEFT_OVER = re.compile(
    r"(latest|config\.yaml|metrics\.jsonl|lineage\.json|data_rows\.json|attempt_\d+\.json|step_\d+\.jsonl)\.\d+"
)


class Run:
    """Folder, metrics and loggers of one run; on all ranks but 0 it only knows paths and writes nothing."""

    def __init__(self, folder: str | Path, *, rank: int, config: Any = None, logging: LoggingConfig | None = None):
        """``config``: the resolved configuration as a dataclass, dict or OmegaConf node, dumped as ``config.yaml``.
        ``logging`` asks for TensorBoard and W&B through NeMo (seconds to import); None keeps NeMo out."""
        self.folder = Path(folder)
        self.rank = rank
        self.checkpoints = self.folder / "checkpoints"
        self.metrics = self.folder / "metrics.jsonl"
        self.loggers: list = []
        self.attempt: int | None = None
        self._config = config
        self._journal = Journal(self.metrics)
        self._lost: list[tuple[Any, int]] = []  # loggers that failed, and the step that each began to miss
        self._tried = 0.0
        if rank != 0:
            return
        with writing("outputs", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if config is not None and not (self.folder / "config.yaml").exists():  # an attempt's own comes when it begins
                _dump(config, self.folder / "config.yaml")
            self.metrics.touch()
        if logging is not None and (logging.tensorboard or logging.wandb_project):
            self.loggers = _loggers(self.folder, logging)

    def begin(self, attempt: Mapping[str, Any]) -> None:
        """An attempt that may go on, with this record (empty: none is kept): from now on the folder is of its configuration."""
        if self.rank != 0 or not attempt:
            return
        attempts.write(self.folder, attempt)
        with writing("outputs", self.folder):
            if self._config is not None:
                _dump(self._config, self.folder / "config.yaml")
            for folder in (self.folder, self.checkpoints, self.folder / "rollouts", self.folder / attempts.FOLDER):
                for left in folder.glob("*"):
                    if _LEFT_OVER.fullmatch(left.name) and left.is_file():
                        left.unlink()
        self.attempt = attempt["attempt"]

    def resume_at(self, step: int, checkpoint: Path | None = None) -> None:
        """Drop metrics of steps that the checkpoint of ``step`` does not know: they will be taken again.

        At 0 all go, that of step 0 (before the first update), too.  Lines that found no room on the disk lie in the
        ``checkpoint``, and are put where they belong.
        """
        if self.rank != 0:
            return
        with writing("outputs", self.metrics):
            lines = _lines(self.metrics)
            missed = _lines(checkpoint / MISSED) if checkpoint is not None else []
            steps = {number for line in lines if (number := _step_of(line)) is not None}
            lines += [line for line in missed if _step_of(line) not in steps]
            kept = [(number, line) for line in lines if step and (number := _step_of(line)) is not None and number <= step]
            replace_text(self.metrics, "".join(line + "\n" for _, line in sorted(kept, key=lambda one: one[0])))

    def notes(self) -> dict[str, str]:
        """What a checkpoint keeps for the metrics: the lines that wait for room."""
        return {MISSED: "".join(line + "\n" for line in self._journal.waiting)} if self._journal.waiting else {}

    def keep(self, origin: dict[str, Any]) -> None:
        """Write ``lineage.json``."""
        if self.rank == 0:
            with writing("outputs", self.folder):
                lineage.write(origin, self.folder / lineage.IN_RUN)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """One line of ``metrics.jsonl`` for ``step`` (1 is the first; 0 stands for before it), and its numbers to the loggers.

        ``values`` may nest: ``{"seconds": {"train": 1.2}}`` is ``seconds.train`` in the loggers.
        """
        if self.rank != 0:
            return
        still_ours()
        own = {} if self.attempt is None else {"attempt": self.attempt}
        written = self._journal.add(json.dumps({"step": step, **own, **_plain(values)}, allow_nan=False))
        self._tell(lambda one: one.log_metrics(_numbers(values), step=step), step)
        if written and self._lost:
            self._catch_up()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None or issubclass(kind, SystemExit):
            self.close()
        elif self.rank == 0:
            self._journal.close()  # what waits for room is kept somewhere, whatever ended the run

    def close(self) -> None:
        if self.rank == 0:
            self._journal.close()
            if self._lost:
                self._catch_up(at_once=True)
        self._tell(lambda one: (one.save(), one.finalize("success")))

    def _catch_up(self, *, at_once: bool = False) -> None:
        """Begin TensorBoard again where it failed, with the steps that it missed; tried every so many seconds."""
        if time.monotonic() - self._tried < _RETRY and not at_once:
            return
        self._tried = time.monotonic()
        for one, first in list(self._lost):
            if type(one).__name__ != "TensorBoardLogger":  # a service keeps its own copies, and may not be begun twice
                continue
            try:
                again = type(one)(save_dir=one.save_dir, name=one.name, version=one.version)
                for line in _lines(self.metrics):
                    values = json.loads(line)
                    if (step := values.pop("step")) >= first:
                        again.log_metrics(_numbers(values), step=step)
                again.save()
            except Exception as error:
                logger.warning("%s still cannot be written (%s)", type(one).__name__, error)
                continue
            self._lost.remove((one, first))
            self.loggers.append(again)
            logger.warning("%s goes on, and has caught up from step %d", type(one).__name__, first)

    def _tell(self, act: Callable[[Any], Any], step: int = 0) -> None:
        """``act`` on each logger.  One that fails is told nothing for a while, and that is said once: it is no part of the run.

        TensorBoard writes in a thread of its own.  Once a write has failed there (the folder is gone, the disk is full), every
        further call raises, and Lightning reports all of it as "you tried to log 0.0 which is currently not supported".
        """
        for one in list(self.loggers):
            try:
                act(one)
            except Exception as error:
                self.loggers.remove(one)
                self._lost.append((one, step))
                self._tried = time.monotonic()
                cause = error.__cause__ or error
                logger.warning(
                    "%s stopped (%s: %s): the run goes on without it; metrics.jsonl has everything",
                    type(one).__name__, type(cause).__name__, cause,
                )  # fmt: skip


def _lines(file: Path) -> list[str]:
    """Lines of ``file``, as far as they are text; none if it is not there."""
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []


def _step_of(line: str) -> int | None:
    """The step of ``line``; None if it is not whole: a killed run leaves a torn last line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """What of a step's values loggers draw."""
    return {k: v for k, v in _flat(values) if isinstance(v, int | float) and not isinstance(v, bool) and k != "attempt"}


def _plain(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes a string that says so."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: dict[str, Any], prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value.item() if hasattr(value, "item") else value


def _dump(config: Any, path: Path) -> None:
    from omegaconf import OmegaConf

    node = config if OmegaConf.is_config(config) else OmegaConf.create(config) if isinstance(config, dict) else (
        OmegaConf.structured(config)
    )
    replace_text(path, OmegaConf.to_yaml(node, resolve=True))


def _loggers(folder: Path, settings: LoggingConfig) -> list:
    """The loggers asked for; Weights & Biases, a service on the network, is left out loudly where it cannot be had."""
    try:
        return _nemo_loggers(folder, settings)
    except Exception as error:
        if settings.wandb_project is None:
            raise
        logger.warning(
            "wandb cannot be used (%s: %s): metrics.jsonl has everything; WANDB_MODE=offline keeps a copy to sync later",
            type(error).__name__, error,
        )  # fmt: skip
    return _nemo_loggers(folder, replace(settings, wandb_project=None)) if settings.tensorboard else []


def _nemo_loggers(folder: Path, logging: LoggingConfig) -> list:
    """TensorBoard and W&B loggers made by ``exp_manager``.  Rank 0 only: the others have nothing to log."""
    import lightning.pytorch as lightning
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from nemo.utils.exp_manager import exp_manager

    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, num_nodes=1, plugins=[LightningEnvironment()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    exp_manager(
        trainer,
        {
            # A folder of its own: exp_manager moves every file that it finds in it to run_<n>/, metrics.jsonl, too.
            "explicit_log_dir": str(folder / "tensorboard"),
            "create_tensorboard_logger": logging.tensorboard,
            "create_wandb_logger": logging.wandb_project is not None,
            "wandb_logger_kwargs": {
                "project": logging.wandb_project, "name": folder.name, "save_dir": str(folder), "resume": "allow",
            },
            "create_checkpoint_callback": False,
            "create_preemption_callback": False,
            "resume_if_exists": False,
            "disable_validation_on_resume": False,
            "log_step_timing": False,
            "log_tflops_per_sec_per_gpu": False,
        },
    )
    return list(trainer.loggers)
