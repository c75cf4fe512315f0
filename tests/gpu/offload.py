"""Item ``offload``: gradient buffers and the optimizer's state leave the device, return, and the next step is bit for bit what
it would have been.

Both runs are given the same gradients, drawn: a backward pass of attention adds up in an order of its own each time.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch

from tests.gpu import drawn
from tests.gpu.place import FAKE, Place

STEPS = 2


def offload(place: Place) -> None:
    from vold_nemo.megatron import parallel

    layout = parallel.initialize(1, 1, seed=0, device=place.device.type)
    undisturbed = _run(place, layout, leaves=False)
    disturbed = _run(place, layout, leaves=True)
    parallel.destroy()
    for what in undisturbed:
        place.check(
            f"{what}_differ", float(undisturbed[what] != disturbed[what]),
            "the same bits go to host memory and back, and Adam and the norm of given gradients are computed in a fixed order",
            at_most=0,
        )  # fmt: skip


def _run(place: Place, layout, *, leaves: bool) -> dict[str, str]:
    """Two updates; between them, perhaps, everything leaves and returns.  Fingerprints of weights and of Adam's state."""
    from vold_nemo.config import OptimizerConfig
    from vold_nemo.megatron import training, weights
    from vold_nemo.megatron.build import build_model
    from vold_nemo.megatron.offload import GradientBuffers, OptimizerState
    from vold_nemo.megatron.optimizer import LearningRate, build_optimizer

    with tempfile.TemporaryDirectory() as folder:
        shape = drawn.STUDENT if place.small else drawn.STUDENT | LARGER
        source = drawn.Drawn(drawn.write_config(Path(folder) / "student", shape))
    arch = source.architecture
    model = build_model(arch, layout, padded_vocabulary=arch.vocabulary, dtype=torch.bfloat16)
    weights.load_hf(model, arch, layout, source)
    stage = training.wrap_ddp(model)
    config = OptimizerConfig(learning_rate=1e-3)
    optimizer, schedule = build_optimizer(config, stage), LearningRate(config, STEPS)
    gradients, state = GradientBuffers(stage), OptimizerState(optimizer, stage)
    for step in range(STEPS):
        if leaves and step:
            _leave_and_return(place, layout, gradients, state)
        _fill(stage, step)
        done = training.update(optimizer, schedule, training.Pass(0.0), layout=layout)
        if done.skipped:
            raise RuntimeError(f"step {step} was skipped: {done}")
    tell = _fingerprint if place.kind != FAKE else lambda tensors: "not known"
    return {
        "weights": tell(model.parameters()), "optimizer_state": tell(state._tensors()),
        "gradient_norm": str(done.grad_norm),
    }  # fmt: skip


LARGER = dict(hidden_size=2048, num_attention_heads=16, intermediate_size=8192, vocab_size=32768)  # a gigabyte or two of state


def _fill(stage, step: int) -> None:
    """The gradient of step ``step``, drawn on the host, where a seed means the same everywhere."""
    stage.zero_grad_buffer()
    for number, parameter in enumerate(stage.parameters()):
        draw = torch.Generator().manual_seed(1000 * step + number)
        row = torch.randn(parameter.shape[-1], generator=draw)
        scale = torch.randn(parameter.numel() // len(row), generator=draw)
        drawn_here = scale[:, None].to(parameter.device) * row.to(parameter.device)
        parameter.main_grad.copy_(drawn_here.view(parameter.shape) * 1e-3)


def _leave_and_return(place: Place, layout, gradients, state) -> None:
    size = {"gradients": gradients.device_bytes(), "optimizer": state.device_bytes()}
    before = _allocated(place)
    leaving = place.seconds_of(lambda: (gradients.leave(), state.leave()))
    left, freed = gradients.device_bytes() + state.device_bytes(), before - _allocated(place)
    returning = place.seconds_of(lambda: (gradients.come_back(), state.come_back()))
    total = sum(size.values())
    place.say(bytes=size)
    place.check("bytes_that_stayed", left, "storages are resized to nothing", at_most=0, kind="bytes")
    place.check(
        "bytes_freed", freed, "the allocator gives back what left; it counts in blocks of 512 bytes",
        at_least=total - (1 << 20), kind="bytes",
    )  # fmt: skip
    if place.kind == "gpu":
        moved = size["optimizer"]
        place.say(leave_gbs=moved / leaving / 1e9, return_gbs=moved / returning / 1e9)


def _allocated(place: Place) -> int:
    return torch.cuda.memory_allocated() if place.device.type == "cuda" else 0


def _fingerprint(tensors) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()
