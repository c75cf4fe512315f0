"""What a rehearsal writes down: who holds memory where and since when, and what was asked of the device, by phase."""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_OWN = str(Path(__file__).parent)
_LIBRARIES = ("megatron/core", "transformer_engine", "nemo", "torch/optim")
WORKSPACE = "cuBLAS workspace"  # Transformer Engine makes it at its first product and keeps it
BACKWARD = "torch.autograd, backward pass"  # its thread knows no line of ours
_places: dict[tuple[str, int], str | None] = {}  # of code, by file and line; None = not worth naming


def place(depth: int = 2) -> str:
    """Where the running code stands: the innermost line of a library, and the line of this project that led there."""
    frame, inner = sys._getframe(depth), ""
    while frame is not None:
        if frame.f_code.co_name.startswith("get_cublas_workspace"):
            inner = inner or WORKSPACE
        key = (frame.f_code.co_filename, frame.f_lineno)
        if key not in _places:
            _places[key] = _named(*key)
        if here := _places[key]:
            if here.startswith(("vold_nemo", "recipes")):
                return f"{here} > {inner}" if inner else here
            inner = inner or here
        frame = frame.f_back
    return inner or BACKWARD


def place_of(error: BaseException) -> str:
    """Where ``error`` was raised: the innermost line of this project, and of the library below it."""
    named = [_named(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    known = [one for one in named if one is not None]
    own = next((one for one in reversed(known) if one.startswith(("vold_nemo", "recipes"))), "")
    return " > ".join(dict.fromkeys([own, *known[-1:]])).strip(" >")


def _named(file: str, line: int) -> str | None:
    if file.startswith(_OWN):
        return None
    if file.startswith((str(_ROOT / "vold_nemo"), str(_ROOT / "recipes"))):
        return f"{Path(file).relative_to(_ROOT)}:{line}"
    for library in _LIBRARIES:
        if f"/{library}/" in file:
            return f"{library}/{file.partition(f'/{library}/')[2]}:{line}"
    return None


@dataclass
class Storage:
    """One allocation."""

    size: int  # bytes, now
    place: str
    phase: str  # that it was made in
    reference: Any = None  # of the storage itself: tells when it ends, as long as it is kept


@dataclass
class Peak:
    """Most that one phase held, and who held it: bytes by (place, phase that it was made in)."""

    size: int = 0
    holders: dict[tuple[str, str], int] = field(default_factory=dict)


class Memory:
    """Allocations of one kind of memory (the device's, or the host's), in bytes.

    Holders at a peak are noted when memory goes down from it: a peak is climbed in many steps, and each would be one.
    """

    def __init__(self) -> None:
        self.live = 0
        self.storages: dict[int, Storage] = {}
        self.peaks: dict[str, Peak] = defaultdict(Peak)
        self._by_holder: Counter[tuple[str, str]] = Counter()
        self._climbing = False

    def made(self, key: int, size: int, phase: str) -> None:
        storage = Storage(size, place(4), phase)
        self.storages[key] = storage
        self._change(storage, size, phase)

    def resized(self, key: int, size: int, phase: str) -> None:
        storage = self.storages[key]
        self._change(storage, size - storage.size, phase)
        storage.size = size

    def freed(self, key: int, phase: str) -> None:
        storage = self.storages.pop(key, None)
        if storage is not None:
            self._change(storage, -storage.size, phase)

    def turn(self, phase: str, into: str) -> None:
        """``phase`` ends: what lives on is the first that ``into`` holds."""
        self._note(phase)
        if self.live > self.peaks[into].size:
            self.peaks[into].size, self._climbing = self.live, True

    def _change(self, storage: Storage, more: int, phase: str) -> None:
        if more < 0:
            self._note(phase)
        self.live += more
        self._by_holder[storage.place, storage.phase] += more
        if self.live > self.peaks[phase].size:
            self.peaks[phase].size, self._climbing = self.live, True

    def _note(self, phase: str) -> None:
        if self._climbing:
            self.peaks[phase].holders = {holder: size for holder, size in self._by_holder.items() if size > 0}
            self._climbing = False

    def made_in(self, phase: str) -> Counter[str]:
        """Bytes that were made in ``phase`` and are still there, by place."""
        found: Counter[str] = Counter()
        for storage in self.storages.values():
            if storage.phase == phase and storage.size:
                found[storage.place] += storage.size
        return found


@dataclass(frozen=True)
class Collective:
    """One kind of call: which operation over which group, on tensors of which device."""

    phase: str
    operation: str
    group: str
    size: int
    link: str  # node | network
    device: str


@dataclass
class Problem:
    """Something that would not work, or not as it should, on a GPU."""

    kind: str
    what: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} at {self.place}"


class Ledger:
    """See the module.  ``device``, ``host``: memory; counters are by phase."""

    def __init__(self) -> None:
        self.phase, self.before = "join", ""
        self.phases: list[str] = ["join"]  # in the order in which they were first entered
        self.device, self.host = Memory(), Memory()
        self.processor: Counter[str] = Counter()  # seconds of this machine, by phase
        self._since = time.process_time()
        self.flops: Counter[tuple[str, str, str]] = Counter()  # phase, type, operation
        self.launches: Counter[str] = Counter()
        self.collective_bytes: Counter[Collective] = Counter()
        self.collective_calls: Counter[Collective] = Counter()
        self.syncs: Counter[tuple[str, str, str]] = Counter()  # phase, what, place
        self.copies: Counter[tuple[str, str, str]] = Counter()  # phase, direction, place: bytes
        self.problems: dict[str, Problem] = {}
        self.objects: Counter[tuple[str, str, str, int]] = Counter()  # phase, call, group, size: Python objects sent
        self.unknown: Counter[str] = Counter()  # values that control flow asked for and that are not known
        self.survivors: dict[str, dict[str, Counter[str]]] = {}  # phase entered: phase made in: place: bytes

    def enter(self, phase: str) -> None:
        """Go on to ``phase``."""
        if phase == self.phase:
            return
        now = time.process_time()
        self.processor[self.phase] += now - self._since
        self._since = now
        for memory in (self.device, self.host):
            memory.turn(self.phase, phase)
        if phase not in self.phases:
            self.phases.append(phase)
        self.phase, self.before = phase, self.phase
        self.survivors[phase] = {known: self.device.made_in(known) for known in self.phases if known != phase}

    def kernel(self, name: str, *, flops: float = 0, dtype: object = None) -> None:
        self.launches[self.phase] += 1
        if flops:
            self.flops[self.phase, str(dtype).removeprefix("torch."), name] += int(flops)

    def collective(self, call: Collective, size: int) -> None:
        self.collective_bytes[call] += size
        self.collective_calls[call] += 1

    def sync(self, what: str) -> None:
        """The host waits for the device."""
        self.syncs[self.phase, what, place(3)] += 1

    def copied(self, direction: str, size: int) -> None:
        self.copies[self.phase, direction, place(3)] += size

    def problem(self, kind: str, what: str, where: str | None = None) -> None:
        found = Problem(kind, what, where or place(3))
        self.problems.setdefault(str(found), found)
