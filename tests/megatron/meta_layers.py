"""Builds one layer, embedding and head of published sizes as fake (meta) tensors, in worlds that exist in name only.

    python -m tests.megatron.meta_layers size:tensor:expert ...

Every parameter of megatron-core's model must have a placement, every placement a parameter, and their shapes must agree.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from tests.megatron.fake_stage import fake_stage


def check(name: str, tensor: int, expert: int) -> int:
    """Number of parameters that were compared."""
    from vold_nemo.megatron import architecture
    from vold_nemo.megatron.weights import _held

    arch = replace(architecture.published()[name], layers=1)
    with fake_stage(arch, tensor, expert=expert) as (model, layout):
        held = list(_held(model, arch, layout))  # raises where a parameter or a rule is left over
    for place, parameter in held:
        shape = list(place.shapes[0])
        if place.packed:
            shape = shape[:0:-1] if place.transposed else shape[1:]
        shape[place.axis] = sum(block.size for block in place.part(0, tensor))
        assert list(parameter.shape) == shape, (name, tensor, expert, place.megatron, parameter.shape, shape)
    return len(held)


if __name__ == "__main__":
    for item in sys.argv[1:]:
        size, tensor, expert = item.split(":")
        print(item, check(size, int(tensor), int(expert)), flush=True)
