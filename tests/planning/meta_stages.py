"""Builds stages of published models as fake (meta) tensors, in worlds by name only, and compares parameters with the plan's.

    python -m tests.planning.meta_stages size:tensor:pipeline:expert:stage ...

As many layers as stages: the layers of a stage are all of one kind.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from tests.megatron.fake_stage import fake_stage, ranks_of_a_stage


def check(name: str, tensor: int, pipeline: int, expert: int, stage: int) -> int:
    """Number of parameters that were compared."""
    from vold_nemo.megatron.architecture import padded_vocabulary
    from vold_nemo.megatron.architecture import read as architecture_of
    from vold_nemo.planning.allocation import Placement, stage_parameters

    arch = replace(architecture_of(f"Qwen/{name}"), layers=pipeline)
    with fake_stage(arch, tensor, pipeline, expert, stage) as (model, _):
        built = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    at = Placement(tensor, pipeline, ranks_of_a_stage(tensor, expert) // tensor, stage, expert=expert)
    planned = [(p.name, p.numel) for p in stage_parameters(arch, at, padded_vocabulary([arch.vocabulary], tensor))]
    assert built == planned, (name, tensor, pipeline, expert, stage, set(built) ^ set(planned))
    return len(built)


if __name__ == "__main__":
    for item in sys.argv[1:]:
        size, *numbers = item.split(":")
        print(item, check(size, *map(int, numbers)), flush=True)
