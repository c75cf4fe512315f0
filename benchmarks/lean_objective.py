"""Launches, waits and bytes of the objective on one micro-batch, counted on fake CUDA tensors; :mod:`benchmarks.lean` runs it.

Bytes moved are those of each operation's operands and results, read or written once: what a kernel cannot do without.  A Triton
kernel's are not known here.  One rank's rows of the vocabulary, no collectives; every token counts, and has a KL.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

SHAPE = {"tokens": 8192, "rows": 75_968, "hidden": 2048, "teacher_hidden": 4096}  # paper_3b's, on one of two tensor ranks


def main(root: str, estimator: str, kernels: str, chunk: int | None) -> dict:
    sys.path.insert(0, root)
    from vold_nemo.rehearsal import shim

    shim.load()
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from vold_nemo.objective import KLTerm, Objective, TeacherStates, TokenBatch, vold_loss
    from vold_nemo.objective.vocabulary import VocabularyShard
    from vold_nemo.rehearsal import values
    from vold_nemo.rehearsal import watch as watching
    from vold_nemo.rehearsal.engine import launched, report
    from vold_nemo.rehearsal.groups import Groups
    from vold_nemo.rehearsal.ledger import Ledger
    from vold_nemo.rehearsal.stand_ins import GPU, play_gpu
    from vold_nemo.rehearsal.trees import leaves

    # Versions before this benchmark counted looks at a tensor's device, and did not know a token's weight.
    watching._NO_LAUNCH.add("device")
    values.MOST_REAL = max(values.MOST_REAL, 1 << 16)
    launched.install()
    ledger = Ledger()
    watch = watching.Watch(ledger, Groups(0, 1, 8))
    play_gpu(GPU("GPU", (9, 0), 80 << 30), ledger, watch)
    report.on_kernel = ledger.kernel
    moved: Counter[str] = Counter()  # by the function of the objective

    class Moved(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func._overloadpacket.__name__
            if name not in watching._NO_LAUNCH:
                given = (args[1:] if name == "copy_" else args, {k: v for k, v in (kwargs or {}).items() if k != "out"})
                touched = [one for one in leaves((given, out)) if isinstance(one, torch.Tensor) and one.device.type == "cuda"]
                moved[_place()] += sum(one.numel() * one.element_size() for one in touched)
            return out

    n, v, h, ht = SHAPE.values()
    with watch:
        device = torch.device("cuda", 0)

        def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        hidden, head = empty(n, h).requires_grad_(), empty(v, h).requires_grad_()
        every, ones = (torch.arange(v) < v - 271).to(device), (torch.ones(n) / n).to(device)
        shard = VocabularyShard.of(0, 1, every)
        for once in (shard, shard.over_sampleable):  # what a run asks of its device once
            assert once.unshared is not once.one_sided
        batch = TokenBatch(
            (torch.arange(n) % 1000).to(device), torch.zeros(n, dtype=torch.int64).to(device), ones, ones, ones, None, ones,
            torch.ones(n, dtype=torch.bool).to(device), torch.arange(n).to(device),
        )  # fmt: skip
        objective = Objective(kl=KLTerm(estimator), kernels=kernels, **({} if chunk is None else {"chunk_tokens": chunk}))
        gradient = empty(v, h, dtype=torch.float32)
        teacher = TeacherStates(empty(n, ht), empty(v, ht))
        ledger.enter("objective")
        before = ledger.device.live
        with Moved():
            loss, _ = vold_loss(hidden, head, batch, shard, objective, teacher=teacher, head_gradient=gradient)
            loss.backward()
        ledger.enter("done")
    of_head = moved["add_head_gradient"] + moved["operand"]  # the second serves the hidden states' gradient as well
    return {
        "launches": ledger.launches["objective"], "waits": sum(n for (at, *_), n in ledger.syncs.items() if at == "objective"),
        "head_gradient_gb": round(of_head / 1e9, 2), "moved_gb": None if kernels == "triton" else round(moved.total() / 1e9, 1),
        "beyond_inputs_gib": round((ledger.device.peaks["objective"].size - before) / 2**30, 2),
    }  # fmt: skip


def _place() -> str:
    """The innermost function of the objective that runs."""
    frame = sys._getframe(2)
    while frame is not None:
        if Path(frame.f_code.co_filename).parent.name == "objective":
            return frame.f_code.co_name
        frame = frame.f_back
    return ""


if __name__ == "__main__":
    root, estimator, kernels, chunk = sys.argv[1:]
    print(json.dumps(main(root, estimator, kernels, int(chunk) or None)))
