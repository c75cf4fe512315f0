"""Where an item runs, and what it finds there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

GPU, CPU, FAKE = "gpu", "cpu", "fake"


class Skipped(Exception):
    """This item does not apply here; says why, and what to do about it."""


class Place:
    """A GPU; or, in a rehearsal, a CPU (small shapes, real numbers) or a GPU that is played (full shapes, no numbers).

    An item says figures and checks limits.  A limit is judged where its kind of number is real:

    ===========  =====  =====  ======
    kind         gpu    cpu    fake
    ===========  =====  =====  ======
    ``value``    yes    yes    no
    ``bytes``    yes    no     yes
    ``rate``     yes    no     no
    ===========  =====  =====  ======
    """

    def __init__(self, kind: str):
        self.kind, self.small = kind, kind == CPU
        self.device = torch.device("cpu") if kind == CPU else torch.device("cuda", 0)
        self.figures: dict[str, Any] = {}
        self.limits: dict[str, dict[str, Any]] = {}

    def say(self, **figures: Any) -> None:
        """Figures that nobody judges; on a GPU that is played, real numbers are nobody's."""
        self.figures |= figures

    def check(
        self, name: str, value: float | None, because: str, *, at_most: float | None = None, at_least: float | None = None,
        kind: str = "value",
    ) -> None:  # fmt: skip
        """``at_least`` <= ``value`` <= ``at_most``, ``because`` of what theory or a measurement of this machine says."""
        judged = {"value": (GPU, CPU), "bytes": (GPU, FAKE), "rate": (GPU,)}[kind]
        held: bool | None = None
        if self.kind not in judged:
            value = None
        elif value is not None:
            value = float(value)
            held = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)  # false of NaN
        self.figures[name] = value
        bounds = {"at_least": at_least, "at_most": at_most}
        self.limits[name] = {k: v for k, v in bounds.items() if v is not None} | {"because": because, "holds": held}

    @property
    def capability(self) -> tuple[int, int]:
        from vold_nemo.megatron import device

        return device.capability(self.device) or (0, 0)

    def needs_fp8(self) -> None:
        """Skipped where the project would not take FP8 either."""
        from vold_nemo.megatron import fp8
        from vold_nemo.megatron.precision import _lacking

        lacking = _lacking(fp8.hardware(self.device))
        if lacking:
            raise Skipped(f"{lacking}; the teacher is bf16 here (teacher.precision=auto)")

    def synchronize(self) -> None:
        from vold_nemo.megatron.device import synchronize

        synchronize(self.device)

    def seconds_of(self, call: Callable[[], object]) -> float:
        self.synchronize()
        began = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - began

    def seconds(self, call: Callable[[], object], repeats: int = 1) -> float:
        """Of one of ``repeats`` calls in a row, after one to warm up."""
        call()
        return self.seconds_of(lambda: [call() for _ in range(repeats)]) / repeats


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """|found - wanted| / |wanted|, Frobenius norms."""
    found, wanted = found.detach().double(), wanted.detach().to(found.device).double()
    return float((found - wanted).norm() / wanted.norm())
