"""Item ``fp8_teacher``: the project's own frozen teacher, small, in bf16, in Transformer Engine's FP8, and in emulated FP8.

The emulation (megatron/float8.py) rounds the same weights and the same inputs by the same rule on plain torch and multiplies
them in fp32: it says what FP8 must cost this model.  Transformer Engine's kernels may add the rounding of their sums.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tests.gpu import drawn
from tests.gpu.linear import recipes
from tests.gpu.place import FAKE, GPU, Place

TOKENS = 2048


def fp8_teacher(place: Place) -> None:
    from vold_nemo.megatron import parallel

    if place.kind != "cpu":
        place.needs_fp8()
    with tempfile.TemporaryDirectory() as folder:
        path = drawn.write_config(Path(folder) / "teacher", drawn.TEACHER)
        layout = parallel.initialize(1, 1, seed=0, device=place.device.type)
        bf16, held = _states(place, path, layout, "bf16")
        for name, barred in recipes(place).items():
            on_cpu = place.kind == "cpu" and name != "mxfp8"
            if barred and not on_cpu:
                place.say(**{f"{name}_left_out": barred})
                continue
            emulated, _ = _states(place, path, layout, "fp8", name, "emulated")
            floor = _drift(place, emulated, bf16, layout)
            place.say(**{f"{name}_emulated_kl": floor.mean if place.kind != FAKE else None})
            if on_cpu:  # the emulation stands for the engine
                found, size = emulated, held
            else:
                found, size = _states(place, path, layout, "fp8", name, "te")
                place.say(**{f"{name}_bytes": size, "bf16_bytes": held})
            drift = _drift(place, found, bf16, layout)
            place.check(
                f"{name}_kl", drift.mean,
                "nats a token; the emulation's, times 2: KL grows with the square of an error, and sums of FP8 products may "
                "add as much again (1/4: less would not be FP8)",
                at_least=floor.mean / 4, at_most=2 * floor.mean,
            )  # fmt: skip
            if place.kind != FAKE:
                place.say(**{f"{name}_same_first_choice": drift.agreement, f"{name}_largest_kl": drift.kl.max().item()})
        parallel.destroy()


def _states(place: Place, path: Path, layout, precision: str, recipe: str = "auto", backend: str = "te"):
    """Final hidden states [n, H] at the predictions, the LM head, and the bytes of the weights."""
    from vold_nemo.config import FP8Config, TeacherConfig
    from vold_nemo.megatron import sequences
    from vold_nemo.megatron.architecture import read
    from vold_nemo.models.fp8_probe import probe_batch
    from vold_nemo.models.teacher import Teacher

    config = TeacherConfig(path=str(path), precision=precision, fp8=FP8Config(recipe=recipe, backend=backend))
    rows = read(str(path)).vocabulary
    teacher = Teacher(config, layout, padded_vocabulary=rows, student_precision="bf16", source=drawn.Drawn)
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randint(0, rows, (500,), generator=draw).tolist() for _ in range(TOKENS // 512)]
    batch = sequences.on_this_rank(probe_batch(texts, TOKENS, 128), layout)
    (hidden,) = teacher.hidden_states([batch])
    size = teacher.memory_bytes()
    if size["gradients"]:
        raise RuntimeError(f"a frozen teacher has {size['gradients']} bytes of gradients")
    found = teacher.selected(hidden, batch), teacher.head, batch.targets.to(layout.device), rows
    if place.kind == GPU:
        torch.cuda.empty_cache()
    return found, size["weights"]


def _drift(place: Place, fp8, bf16, layout):
    from vold_nemo.models.drift import token_drift, vocabulary_shard

    hidden, head, targets, rows = bf16
    return token_drift(fp8[0], hidden, head, targets, vocabulary_shard(layout, rows, len(head)))
