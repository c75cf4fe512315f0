"""Student, teacher, and the layout that they share."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from vold_nemo.config.fields import ABOVE_ZERO, COUNT, POSITIVE, key, section

DELAYED = "scales of a frozen model never update under it: they stay at 1.0"


@dataclass
class StudentConfig:
    """The vision-language student, an ordinary Hugging Face checkpoint."""

    path: str = key(MISSING, "folder, or hub id found in the local cache")
    revision: str | None = key(None, "of a hub id; null = what the cache holds as main")


@dataclass
class FP8Config:
    """The teacher's linear layers in FP8 (docs/fp8.md); embedding, norms, router and LM head stay bf16."""

    backend: str = key("te", "Transformer Engine on a GPU with FP8, or FP8 weights on any device, for study",
                       choices=("te", "emulated"))  # fmt: skip
    recipe: str = key("auto", "which values share a scale; auto follows GPU and shapes",
                      choices=("auto", "blockwise", "mxfp8", "tensorwise"), refused={"delayed": DELAYED})  # fmt: skip
    activations: bool = key(True, "emulated: what a linear layer reads is rounded to FP8, too; false = weights alone")
    probe_tokens: int = key(512, "ours: tokens scored in both precisions before the first step; 0 = no probe", bound=COUNT)
    probe_layers: int = key(2, "ours: layers of each pipeline stage that the probe computes in bf16 for comparison",
                            bound=POSITIVE)  # fmt: skip
    max_drift: float = key(0.1, "ours: a probe whose mean KL(bf16 || fp8) is above this stops the run; nats a token",
                           bound=ABOVE_ZERO)  # fmt: skip


@dataclass
class TeacherConfig:
    """The text-only teacher, an ordinary Hugging Face checkpoint; frozen."""

    path: str = key(MISSING, "folder, or hub id found in the local cache")
    revision: str | None = key(None, "of a hub id; null = what the cache holds as main")
    precision: str = key("auto", "auto = fp8 where GPU and libraries have it (docs/fp8.md)",
                         choices=("auto", "fp32", "bf16", "fp8"))  # fmt: skip
    thinking: bool = key(False, "ours: passed to the teacher's chat template as enable_thinking")
    offload: bool = key(False, "off the device while it does not score; its LM head stays for the loss")
    offload_to: str = key("host", "kept in (pinned) host memory, or dropped and read from disk again",
                          choices=("host", "checkpoint"))  # fmt: skip
    fp8: FP8Config = section(FP8Config)


@dataclass
class TokenizerConfig:
    """What the student's tokenizer becomes."""

    adopt_teacher_tokens: bool = key(False, "give the student the teacher's extra tokens (<think>) in spare embedding rows")


@dataclass
class ParallelConfig:
    """Layout shared by student and teacher.  Data parallel size = world size / (tensor x pipeline x context)."""

    tensor: int = key(1, "ranks that share each matrix", bound=POSITIVE)
    pipeline: int = key(1, "ranks that share the layers", bound=POSITIVE)
    virtual: int = key(1, "virtual stages: pieces that a rank's layers are cut into, for a smaller bubble (interleaved 1F1B)",
                       bound=POSITIVE)  # fmt: skip
    context: int = key(1, "ranks that share each sequence, for long ones", bound=POSITIVE)
    expert: int = key(1, "ranks that share the experts of a layer", bound=POSITIVE)
    sequence: bool = key(False, "Megatron sequence parallelism; needs tensor > 1")
    recompute: str = key("none", "of the student's activations in the backward pass; selective: the feed-forward",
                         choices=("none", "selective", "full"))  # fmt: skip

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context
