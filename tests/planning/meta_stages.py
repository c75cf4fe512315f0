"""Builds stages of published models as fake (meta) tensors, in worlds by name only, and compares parameters with the plan's.

    python -m tests.planning.meta_stages size:tensor:pipeline:expert:stage ...

As many layers as stages: the layers of a stage are all of one kind.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from unittest import mock


def check(name: str, tensor: int, pipeline: int, expert: int, stage: int) -> int:
    """Number of parameters that were compared."""
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from vold_nemo.megatron import build, parallel
    from vold_nemo.megatron.architecture import padded_vocabulary
    from vold_nemo.planning.allocation import Placement, stage_parameters
    from vold_nemo.planning.published import architecture_of

    arch = replace(architecture_of(f"Qwen/{name}"), layers=pipeline)
    each = math.lcm(tensor, expert)  # ranks of a stage
    dist.init_process_group("fake", store=FakeStore(), rank=stage * each, world_size=pipeline * each)
    try:
        layout = parallel.initialize(tensor, pipeline, expert=expert, sequence=tensor > 1, seed=1, device="cpu")
        rows = padded_vocabulary([arch.vocabulary], tensor)
        # fake parameters are on the CPU already, and cannot be moved
        with FakeTensorMode(), mock.patch.object(torch.nn.Module, "to", lambda module, device: module):
            model = build.build_model(arch, layout, padded_vocabulary=rows, dtype=torch.bfloat16)
            built = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
        at = Placement(tensor, pipeline, each // tensor, stage, expert=expert)
        planned = [(parameter.name, parameter.numel) for parameter in stage_parameters(arch, at, rows)]
        assert built == planned, (name, tensor, pipeline, expert, stage, set(built) ^ set(planned))
        return len(built)
    finally:
        parallel.destroy()
        dist.destroy_process_group()


if __name__ == "__main__":
    for item in sys.argv[1:]:
        size, *numbers = item.split(":")
        print(item, check(size, *map(int, numbers)), flush=True)
