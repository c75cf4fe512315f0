"""Seconds by phase, measured where the work ends: a CUDA device is waited for at both ends.

A phase may begin with a handover of the device (``models/handover.py``); its time counts to the phase.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vold_nemo.megatron.device import synchronize
from vold_nemo.models import heartbeat
from vold_nemo.models.handover import Handover


class PhaseClock:
    """``with clock("teacher"): ...`` adds to ``clock.seconds["teacher"]``."""

    def __init__(self, device: torch.device, handover: Handover | None = None):
        self.device, self.handover = device, handover
        self.seconds: dict[str, float] = {}

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = self._now()
        try:
            if self.handover is not None:
                self.handover.leave(phase)  # before the phase: its memory is what it needs
            heartbeat.note(phase)
            if self.handover is not None:
                self.handover.enter(phase)
            yield
            if self.handover is not None:
                self.handover.measure(phase)
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - began
