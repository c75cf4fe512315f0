"""A GPU that is played (vold_nemo/rehearsal), with Transformer Engine's Python layer on it, for items that need CUDA."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# by compute capability: a name, and GiB; all large enough for every item
GPUS = {(8, 0): ("a played A100", 140), (9, 0): ("a played H200", 140), (10, 0): ("a played B200", 180)}


@contextlib.contextmanager
def gpu(capability: tuple[int, int]) -> Iterator[None]:
    """Turns this process into one with a fake GPU of that compute capability, for good; torch must not be imported yet."""
    os.environ |= {"TORCHDYNAMO_DISABLE": "1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    from vold_nemo.rehearsal import shim

    shim.load()
    from vold_nemo.rehearsal import engine, stand_ins, values
    from vold_nemo.rehearsal.engine import report
    from vold_nemo.rehearsal.groups import Groups
    from vold_nemo.rehearsal.ledger import Ledger
    from vold_nemo.rehearsal.watch import Watch

    ledger, groups = Ledger(), Groups(0, 1, 1)
    watch = Watch(ledger, groups)
    name, memory = GPUS[capability]
    stand_ins.play_gpu(stand_ins.GPU(name, capability, memory << 30), ledger, watch)
    report.on_kernel, report.values_of = ledger.kernel, values.known
    engine.install(engine.cached())
    stand_ins.play_world(ledger, watch)
    _peaks_begin_anew(ledger)
    _generators()
    groups.join()
    with watch:
        yield


def _peaks_begin_anew(ledger) -> None:
    """``torch.cuda.reset_peak_memory_stats`` as torch has it: a rehearsal keeps a peak a phase and has no use for it."""
    import torch

    def reset(device=None) -> None:
        for peak in ledger.device.peaks.values():
            peak.size = 0
        ledger.device.peaks[ledger.phase].size = ledger.device.live

    torch.cuda.reset_peak_memory_stats = reset


def _generators() -> None:
    """``torch.Generator("cuda")`` wants CUDA's own library; numbers that nobody draws need no generator of their own."""
    import torch

    made = torch.Generator

    class Kind(type):
        def __instancecheck__(cls, one) -> bool:
            return isinstance(one, made)

        def __call__(cls, device=None):
            return made()

    torch.Generator = Kind("Generator", (), {})
