"""The items, in order of worth: earlier ones decide whether later ones mean anything.  No torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

CPU, FAKE = "cpu", "fake"  # what an item is rehearsed on: small on a CPU, with numbers; on a GPU that is played, without


@dataclass(frozen=True)
class Item:
    """``function`` (module:name below tests.gpu) takes a :class:`tests.gpu.place.Place`; ``seconds`` is its limit."""

    name: str
    function: str
    seconds: float
    what: str
    rehearsed_on: tuple[str, ...] = (CPU, FAKE)
    rehearsal_seconds: float = 400

    def load(self) -> Callable:
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module if "." in module else f"tests.gpu.{module}"), name)


TOTAL = 480.0  # seconds that all items together may take
# What each is promised; together TOTAL.  What is left over goes to those behind (runner.py).
ITEMS = (
    Item("import", "basics:imports", 45, "libraries, capability, one product", (FAKE,)),
    Item("fp8_linear", "linear:fp8_linear", 35, "one FP8 layer of Transformer Engine: bytes, rounding, product", (FAKE,)),
    Item("fp8_teacher", "teacher:fp8_teacher", 55, "a small teacher in FP8 against bf16: KL of next-token distributions"),
    Item("bf16_step", "student:bf16_step", 50, "loss and gradients of a bf16 step against fp32 on the CPU"),
    Item("objective", "objective:objective", 50, "the loss without logits against dense torch; Triton's kernels; Liger's"),
    Item("head_rate", "objective:head_rate", 20, "matrix products of the LM head against the GPU's own rate"),
    Item("offload", "offload:offload", 35, "gradients and optimizer leave and return; the next step is the same"),
    Item("peak", "step:peak", 55, "memory of a step, phase by phase, against its rehearsal", (FAKE,), 900),
    Item("step", "step:step", 85, "3B student, 8B teacher: one VOLD step against one GRPO step", (FAKE,)),
    Item("engine", "engine:engine", 50, "vLLM sleeps, wakes, and takes new weights", (CPU,)),
)  # fmt: skip
