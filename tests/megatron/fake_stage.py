"""One pipeline stage of a model of any size, on fake tensors in a fake process group: names and shapes, no memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def fake_stage(arch, tensor: int, pipeline: int = 1, expert: int = 1, stage: int = 0) -> Iterator[tuple]:
    """(model, layout) of the first rank of ``stage``; :func:`ranks_of_a_stage` ranks are one."""
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from vold_nemo.megatron import architecture, build, parallel

    each = ranks_of_a_stage(tensor, expert)
    dist.init_process_group("fake", store=FakeStore(), rank=stage * each, world_size=pipeline * each)
    try:
        layout = parallel.initialize(tensor, pipeline, expert=expert, sequence=tensor > 1, seed=1, device="cpu")
        rows = architecture.padded_vocabulary([arch.vocabulary], tensor)
        # fake parameters are on the CPU already, and cannot be moved
        with FakeTensorMode(), mock.patch.object(torch.nn.Module, "to", lambda module, device: module):
            yield build.build_model(arch, layout, padded_vocabulary=rows, dtype=torch.bfloat16), layout
    finally:
        parallel.destroy()
        dist.destroy_process_group()


def ranks_of_a_stage(tensor: int, expert: int) -> int:
    return math.lcm(tensor, expert)
