"""The two stages, and what both keep on disk."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from vold_nemo.config.fields import ABOVE_ZERO, COUNT, FRACTION, LENGTH, POSITIVE, key, section
from vold_nemo.config.sections.data import DatasetConfig


@dataclass
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = key(MISSING, "the highest, after the warm-up", bound=ABOVE_ZERO)
    min_learning_rate: float = key(0.0, "where the schedule ends", bound=COUNT)
    schedule: str = key("cosine", "from the highest to the lowest", choices=("constant", "linear", "cosine"))
    warmup_steps: int = key(0, "updates over which the rate first rises", bound=COUNT)
    weight_decay: float = key(1e-2, "paper; of matrices only", bound=COUNT)
    beta1: float = key(0.9, "Adam's memory of gradients", bound=FRACTION)
    beta2: float = key(0.95, "Adam's memory of their squares", bound=FRACTION)
    epsilon: float = key(1e-8, "Adam's", bound=ABOVE_ZERO)
    clip_grad: float = key(1.0, "largest norm of the whole gradient; 0 = never clip", bound=COUNT)
    distributed: bool = key(False, "shard optimizer state over data-parallel ranks")
    max_skipped: int = key(3, "ours: updates in a row skipped as not finite before the run stops", bound=POSITIVE)


@dataclass
class SFTConfig:
    """Stage 1, eq. 4."""

    run: str = key("${name}/sft", "run folder under `outputs`")
    steps: int = key(4000, "paper", bound=POSITIVE)
    batch: int = key(256, "paper; sequences per step over all ranks", bound=POSITIVE)
    micro_batch: int = key(1, "rows; padded to the longest of them", bound=POSITIVE)
    packing: bool = key(False, "whole traces one after the other in a row, each attending to itself alone")
    pack_length: int | None = key(None, "tokens of a packed row, at most; null = max_length", bound=LENGTH)
    max_length: int = key(8192, "paper; longer traces are dropped", bound=LENGTH)
    optimizer: OptimizerConfig = section(OptimizerConfig, learning_rate=5e-5, warmup_steps=150)  # paper


@dataclass
class ValidationConfig:
    """Greedy accuracy on images and on held-out text during stage 2, on the rollout engine (the paper's figure 3)."""

    every: int = key(0, "steps; 0 = never; once before the first step, too", bound=COUNT)
    data: DatasetConfig | None = key(None, "image questions; accuracy also by their `domain`")
    text: DatasetConfig | None = key(None, "text questions that are not trained on")
    hold_out: int = key(0, "ours: instead of `text`, so many of the training prompts, kept out of training", bound=COUNT)
    max_tokens: int = key(1024, "of an answer", bound=POSITIVE)


@dataclass
class OffloadConfig:
    """What leaves the device in the phases of stage 2 that do without it (vold_nemo/models/handover.py)."""

    gradients: bool = key(False, "gradient buffers: freed outside the training phase")
    optimizer: bool = key(False, "master weights and Adam's moments: in host memory outside the training phase")


@dataclass
class VOLDConfig:
    """Stage 2, the loop."""

    run: str = key("${name}/${objective.arm}", "run folder under `outputs`")
    start: str = key("${outputs}/${name}/sft/hf", "Hugging Face checkpoint the student starts from")
    steps: int = key(60, "paper", bound=POSITIVE)
    prompts_per_step: int = key(256, "paper says batch 256; ours: it counts prompts", bound=POSITIVE)
    updates_per_step: int = key(1, "ours: optimizer steps on one batch of rollouts", bound=POSITIVE)
    micro_batch_tokens: int = key(16384, "padded tokens of one micro-batch", bound=POSITIVE)
    rollout_log_every: int = key(1, "steps between rollouts/step_*.jsonl files; 0 = never", bound=COUNT)
    rollout_log_tokens: bool = key(True, "in them also ids, log-probs and KL of every token, some 30 bytes each")
    optimizer: OptimizerConfig = section(OptimizerConfig, learning_rate=6e-6, warmup_steps=5)  # paper
    validation: ValidationConfig = section(ValidationConfig)
    offload: OffloadConfig = section(OffloadConfig)


@dataclass
class CheckpointConfig:
    """When a training run is saved, what is kept of it, and how it goes on."""

    every: int = key(50, "steps", bound=POSITIVE)
    keep: int = key(2, "the newest so many; more are kept by the two rules below", bound=POSITIVE)
    keep_every: int = key(0, "and each whose step is a multiple of this; 0 = none", bound=COUNT)
    keep_best: int = key(0, "and the best so many by `metric`; 0 = none", bound=COUNT)
    metric: str = key("loss", "a name in metrics.jsonl: reward_mean, seconds.train, ...")
    metric_best: str = key("min", "which is the best", choices=("min", "max"))
    asynchronous: bool = key(True, "written by a thread meanwhile, from a copy in host memory; the first and the last are not")
    resume: str = key("auto", "auto: from the newest whole checkpoint, if there is one", choices=("auto", "never", "required"))
    accept: list[str] = key([], "keys that a resumed run may have otherwise than before, although that makes it another run; a "
                            "refused resume names them")
    reshard: bool | str = key(False, "resume in another layout, too: weights and optimizer exactly, random states anew; auto: "
                              "where only the data ranks are more or fewer", choices=("auto", "true", "false"))  # fmt: skip


@dataclass
class LimitsConfig:
    """Time limits that a training run keeps by itself."""

    wall_minutes: float | None = key(None, "the step that would end later is not begun: checkpoint, exit 85", bound=ABOVE_ZERO)
    stuck_minutes: float | None = key(60.0, "a rank that spends longer in one phase hangs: stacks of all ranks, exit 86",
                                      bound=ABOVE_ZERO)  # fmt: skip


@dataclass
class ProfileConfig:
    """Steps of a training run whose time is taken apart, phase by phase (docs/profiling.md)."""

    steps: list[int] = key([], "the first and the last of them, counted from 1 as in metrics.jsonl; [] = none", bound=POSITIVE)
    tool: str = key("torch", "torch = its own profiler: a trace and a table by phase, on a CPU, too; nsys = Nsight Systems, "
                    "which the ranks are started under", choices=("torch", "nsys"))  # fmt: skip
    ranks: list[int] = key([], "that are looked into; [] = all", bound=COUNT)


@dataclass
class LoggingConfig:
    """Who gets the metrics, besides metrics.jsonl."""

    tensorboard: bool = key(True, "tensorboard/ in the run folder")
    wandb_project: str | None = key(None, "set to log to Weights & Biases")
