"""Who holds the device: what leaves it while another phase works, and the bytes that each phase then measures.

The table is in ``planning/residency.py``.  Nothing moves in a phase that it does not name.  Leaving comes before coming
back, so that two never need the room at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch

from vold_nemo.config import Config
from vold_nemo.megatron import device as devices
from vold_nemo.megatron.offload import GradientBuffers, OptimizerState, storage_bytes
from vold_nemo.models.teachers import Teachers
from vold_nemo.planning.residency import NEEDS, leaving
from vold_nemo.rollout.engine import RolloutEngine


class Movable(Protocol):
    def leave(self) -> None:
        """Free the device's memory; what it held comes back with :meth:`come_back`, bit for bit."""

    def come_back(self) -> None: ...


class Handover:
    """The state machine of the table.

    Args:
        movables: what leaves the device, by its column: ``gradients | optimizer | teacher | engine``.
        bytes_of: how many bytes of the device each holder takes now, movable or not; measured, not reckoned.
        away: the movables that have left already.
    """

    def __init__(
        self, movables: Mapping[str, Movable], bytes_of: Mapping[str, Callable[[], int]], away: Iterable[str] = ()
    ):
        self._movables, self._bytes_of = movables, bytes_of
        self.away = set(away)
        self.held: dict[str, dict[str, int]] = {}  # by phase; of the last time that it was left

    def leave(self, phase: str) -> None:
        """Send away what ``phase`` does not need."""
        for name, movable in self._movables.items():
            if phase in NEEDS and name not in NEEDS[phase] and name not in self.away:
                movable.leave()
                self.away.add(name)

    def enter(self, phase: str) -> None:
        """Bring about the row of ``phase``."""
        if phase not in NEEDS:
            return
        self.leave(phase)
        for name in sorted(self.away & NEEDS[phase]):
            self._movables[name].come_back()
            self.away.remove(name)

    def measure(self, phase: str) -> None:
        """Note what is held at the end of ``phase``."""
        if phase in NEEDS:
            self.held[phase] = {name: count() for name, count in self._bytes_of.items()}


class SleepingEngine:
    """The rollout engine as a :class:`Movable`.  What training freed is given back to the device first: an engine that
    allocates past torch (vLLM) would find it taken."""

    def __init__(self, engine: RolloutEngine, device: torch.device):
        self._engine, self._device = engine, device
        self.leave = engine.sleep

    def come_back(self) -> None:
        devices.empty_cache(self._device)
        self._engine.wake()


def handover_of(config: Config, stage, optimizer, engine: RolloutEngine, teachers: Teachers) -> Handover:
    """The handover that the keys ask for.  ``stage``: the student in DDP; ``optimizer``: megatron-core's.

    An engine that is to sleep does so since it was built (``models/stages.py``).
    """
    gradients, state = GradientBuffers(stage), OptimizerState(optimizer, stage)
    device = next(stage.parameters()).device
    movables: dict[str, Movable] = {"gradients": gradients, "optimizer": state, "engine": SleepingEngine(engine, device)}
    measured = {
        "student": lambda: storage_bytes(stage.parameters()),
        "gradients": gradients.device_bytes,
        "optimizer": state.device_bytes,
        "engine": engine.device_bytes,
    }
    if teachers:
        measured["teacher"] = teachers.device_bytes
    asked = leaving(config)
    return Handover({name: movables[name] for name in movables if name in asked}, measured, away=asked & {"engine"})
