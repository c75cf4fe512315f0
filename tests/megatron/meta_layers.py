"""Builds one layer, embedding and head of published sizes as fake (meta) tensors, in worlds that exist in name only.

    python -m tests.megatron.meta_layers size:tensor:expert ...

Every parameter of megatron-core's model must have a placement, every placement a parameter, and their shapes must agree.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from unittest import mock


def check(name: str, tensor: int, expert: int) -> int:
    """Number of parameters that were compared."""
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from vold_nemo.megatron import architecture, build, parallel
    from vold_nemo.megatron.weights import _held

    arch = replace(architecture.published()[name], layers=1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=math.lcm(tensor, expert))
    try:
        layout = parallel.initialize(tensor, 1, expert=expert, sequence=tensor > 1, seed=1, device="cpu")
        rows = architecture.padded_vocabulary([arch.vocabulary], tensor)
        # fake parameters are on the CPU already, and cannot be moved
        with FakeTensorMode(), mock.patch.object(torch.nn.Module, "to", lambda module, device: module):
            model = build.build_model(arch, layout, padded_vocabulary=rows, dtype=torch.bfloat16)
            held = list(_held(model, arch, layout))  # raises where a parameter or a rule is left over
        for place, parameter in held:
            shape = list(place.shapes[0])
            if place.packed:
                shape = shape[:0:-1] if place.transposed else shape[1:]
            shape[place.axis] = sum(block.size for block in place.part(0, tensor))
            assert list(parameter.shape) == shape, (name, tensor, expert, place.megatron, parameter.shape, shape)
        return len(held)
    finally:
        parallel.destroy()
        dist.destroy_process_group()


if __name__ == "__main__":
    for item in sys.argv[1:]:
        size, tensor, expert = item.split(":")
        print(item, check(size, int(tensor), int(expert)), flush=True)
