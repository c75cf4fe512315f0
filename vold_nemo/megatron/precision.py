"""In which precision the teacher is held, decided from the GPU, the libraries and the shapes.  No torch.

FP8 is e4m3 (4 exponent bits, 3 of mantissa, largest value 448) times a scale.  The recipes differ in how many values share
one, and in what the tensor's dimensions must be multiples of:

===========  ========================================  =========================  ==================================
recipe       values that share a scale                 multiple                   GPUs (compute capability)
===========  ========================================  =========================  ==================================
blockwise    128 x 128 of a weight, 1 x 128 of input   128                        from 9.0, with CUDA 12.9
mxfp8        1 x 32                                    32                         10.x
tensorwise   the whole tensor                          16                         from 8.9
===========  ========================================  =========================  ==================================

``delayed``, megatron-core's default, takes its scales from earlier steps and renews them only while gradients are formed:
a frozen teacher's would stay at 1.0 for ever (Transformer Engine, ``quantization.py: autocast_exit``).  The schema refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vold_nemo.config import ConfigError, TeacherConfig
from vold_nemo.config.check import require
from vold_nemo.megatron.architecture import Architecture

FIRST_FP8 = (8, 9)  # compute capability: Ada; A100 (8.0) and consumer Ampere (8.6) have no FP8
OLDEST_ENGINE = (2, 3)  # Transformer Engine from which megatron-core takes all three recipes
MULTIPLE = {"blockwise": 128, "mxfp8": 32, "tensorwise": 16}
BLOCK: dict[str, tuple[int, int] | None] = {"blockwise": (128, 128), "mxfp8": (1, 32), "tensorwise": None}
SCALE_BYTES = {"blockwise": 4, "mxfp8": 1, "tensorwise": 4}  # fp32, or mxfp8's exponent byte


@dataclass(frozen=True)
class Hardware:
    """What a rank computes on.  ``capability`` None: not known (a plan for a cluster that does not say)."""

    device: str  # cpu | cuda
    capability: tuple[int, int] | None = None
    engine: tuple[int, int] | None = None  # version of Transformer Engine; None = not installed
    cuda: tuple[int, int] | None = None  # version that torch was built with


@dataclass(frozen=True)
class Precision:
    """How the teacher's linear layers are held; embedding, norms, router and LM head are bf16 where they are FP8."""

    weights: str  # fp32 | bf16 | fp8
    reason: str
    recipe: str | None = None
    backend: str | None = None  # te | emulated
    activations: bool = True  # what an FP8 layer reads is FP8, too

    @property
    def dtype(self) -> str:
        """Of everything that is not FP8, hidden states too."""
        return "bf16" if self.weights == "fp8" else self.weights

    def describe(self) -> str:
        how = "" if self.recipe is None else f" ({self.recipe}, {self.backend}{'' if self.activations else ', weights alone'})"
        return f"teacher in {self.weights}{how}: {self.reason}"


def linear_shapes(arch: Architecture, tensor: int) -> dict[str, tuple[int, int]]:
    """(rows, columns) on one tensor-parallel rank of every kind of weight that FP8 holds, by the end of its Megatron name."""
    query, key = arch.heads * arch.head_dim, arch.kv_groups * arch.head_dim
    width, split = (arch.expert_ffn, 1) if arch.experts else (arch.ffn, tensor)  # experts are whole on a rank
    return {
        "linear_qkv.weight": ((query + 2 * key) // tensor, arch.hidden),
        "linear_proj.weight": (arch.hidden, query // tensor),
        "linear_fc1.weight": (2 * width // split, arch.hidden),
        "linear_fc2.weight": (arch.hidden, width // split),
    }


def misfits(arch: Architecture, tensor: int, multiple: int) -> list[str]:
    """Shard dimensions that are no multiple of ``multiple``."""
    return [
        f"{name.removesuffix('.weight')} {rows} x {columns}"
        for name, (rows, columns) in linear_shapes(arch, tensor).items()
        if rows % multiple or columns % multiple
    ]


def weight_bytes(rows: int, columns: int, recipe: str) -> int:
    """Bytes of one FP8 weight, row-wise copy alone: a byte a value and its scales."""
    block = BLOCK[recipe]
    scales = 1 if block is None else -(-rows // block[0]) * -(-columns // block[1])
    return rows * columns + SCALE_BYTES[recipe] * scales


def choose(teacher: TeacherConfig, student: str, hardware: Hardware, arch: Architecture, tensor: int) -> Precision:
    """The precision that ``teacher`` asks for on ``hardware``; ``student``: the run's ``precision``.

    ``auto`` takes FP8 where GPU, Transformer Engine and shapes allow it, else bf16; on a CPU the student's.  It never takes
    the emulation.  Nothing that was asked for by name is replaced silently.

    :raises ConfigError: FP8, or a recipe, that this hardware or these shapes do not have; a value that cannot be.
    """
    require(teacher, "teacher.")
    wanted, fp8 = teacher.precision, teacher.fp8
    if wanted in ("fp32", "bf16"):
        return Precision(wanted, "teacher.precision says so")
    if fp8.backend == "emulated":
        if wanted == "auto":
            raise ConfigError("teacher.fp8.backend", "emulated", "te with teacher.precision=auto",
                              "the emulation is slower than bf16 and never chosen by itself: set teacher.precision=fp8")
        return replace(_emulated(fp8.recipe, arch, tensor), activations=fp8.activations)
    if not fp8.activations:
        raise ConfigError("teacher.fp8.activations", False, "true with teacher.fp8.backend=te",
                          "FP8 matrix units read FP8 inputs: set teacher.fp8.backend=emulated to study weights alone")
    if wanted == "auto" and hardware.device == "cpu":
        return Precision(student, "on a CPU it takes the student's precision")
    if wanted == "auto" and hardware.capability is None:
        return Precision(student, "taken from the student's: the GPU's compute capability is not known")
    lacking = _lacking(hardware)
    if lacking and wanted == "auto":
        return Precision("bf16", lacking)
    if lacking:
        raise ConfigError("teacher.precision", "fp8", f"bf16 or auto here: {lacking}",
                          "set teacher.precision=auto, or teacher.fp8.backend=emulated to study FP8 without its speed")
    return _on_gpu(wanted, fp8.recipe, hardware, arch, tensor)


def _lacking(hardware: Hardware) -> str:
    """Why this hardware has no FP8; empty if it has."""
    if hardware.device == "cpu":
        return "FP8 needs a GPU"
    if hardware.capability is not None and hardware.capability < FIRST_FP8:
        return f"FP8 needs compute capability 8.9 and this GPU has {_dotted(hardware.capability)}"
    if hardware.engine is None:
        return "FP8 needs Transformer Engine, and it is not installed"
    if hardware.engine < OLDEST_ENGINE:
        return f"FP8 needs Transformer Engine {_dotted(OLDEST_ENGINE)} and {_dotted(hardware.engine)} is installed"
    return ""


def _barred(recipe: str, hardware: Hardware, arch: Architecture, tensor: int) -> str:
    """Why ``recipe`` cannot be taken; empty if it can."""
    capability = hardware.capability or (9, 0)  # a plan that does not know supposes Hopper
    if recipe == "mxfp8" and capability[0] != 10:
        return f"mxfp8 needs compute capability 10.x and this GPU has {_dotted(capability)}"
    if recipe == "blockwise" and capability < (9, 0):
        return f"blockwise needs compute capability 9.0 and this GPU has {_dotted(capability)}"
    if recipe == "blockwise" and hardware.cuda is not None and hardware.cuda < (12, 9):
        return f"blockwise needs CUDA 12.9 and torch was built with {_dotted(hardware.cuda)}"
    odd = misfits(arch, tensor, MULTIPLE[recipe])
    return f"{recipe} needs multiples of {MULTIPLE[recipe]}: {', '.join(odd)} on a rank" if odd else ""


def _on_gpu(wanted: str, recipe: str, hardware: Hardware, arch: Architecture, tensor: int) -> Precision:
    capability = hardware.capability or (9, 0)
    gpu = f"compute capability {_dotted(capability)}" if hardware.capability else "a GPU like Hopper is supposed"
    if recipe != "auto":
        barred = _barred(recipe, hardware, arch, tensor)
        if barred:
            raise ConfigError("teacher.fp8.recipe", recipe, barred, "set teacher.fp8.recipe=auto")
        return Precision("fp8", f"{gpu}; teacher.fp8.recipe says so", recipe, "te")
    first = {9: "blockwise", 10: "mxfp8"}.get(capability[0], "tensorwise")
    said = [gpu]
    for choice in dict.fromkeys((first, "tensorwise")):
        barred = _barred(choice, hardware, arch, tensor)
        if not barred:
            return Precision("fp8", "; ".join(said), choice, "te")
        said.append(barred)
    if wanted == "auto":
        return Precision("bf16", "; ".join(said))
    raise ConfigError("teacher.precision", "fp8", "; ".join(said), "change parallel.tensor, or set teacher.precision=bf16")


def _emulated(recipe: str, arch: Architecture, tensor: int) -> Precision:
    """The emulation takes any recipe and any shape; ``auto`` follows Hopper's rule, so that it foretells Hopper's drift."""
    if recipe != "auto":
        return Precision("fp8", "emulated; teacher.fp8.recipe says so", recipe, "emulated")
    odd = misfits(arch, tensor, MULTIPLE["blockwise"])
    why = f"emulated; {', '.join(odd)} on a rank: no multiples of 128" if odd else "emulated as on Hopper"
    return Precision("fp8", why, "tensorwise" if odd else "blockwise", "emulated")


def pad_multiple(precision: Precision | None, split: int) -> int:
    """What the padded length of a micro-batch must be a multiple of; ``split``: what the layout asks for
    (:attr:`vold_nemo.megatron.parallel.Layout.pad_multiple`).

    FP8 matrix units want the recipe's multiple of tokens on each rank, after sequence and context parallelism have split
    them.  The emulation has no such want, nor has bf16.
    """
    return split * (MULTIPLE[precision.recipe] if precision is not None and precision.backend == "te" else 1)


def of_cluster(device: str, capability: float | None) -> Hardware:
    """The hardware of a plan: ``cluster.compute_capability`` (9.0, 10.3), with Transformer Engine supposed on it."""
    if device == "cpu":
        return Hardware("cpu")
    number = None if capability is None else divmod(round(10 * capability), 10)
    return Hardware("cuda", number, engine=OLDEST_ENGINE)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
