"""Parameter, gradient and optimizer bytes of the plan are what megatron-core allocates, to the byte, on every rank."""

import pytest

from tests.covering import covering
from tests.megatron import tiny
from tests.planning.allocations import allocated
from vold_nemo.megatron import architecture
from vold_nemo.planning.allocation import Placement, checkpoint_copy, stage_parameters, trained

KINDS = {"qwen2_5_vl": True, "qwen3": False}  # kind: tied


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("allocation")
    for kind, tied in KINDS.items():
        tiny.save(kind, folder / kind, tied=tied)
    return folder


LAYOUTS = [(1, 1, 1), (1, 1, 2), (2, 1, 2), (1, 2, 2), (1, 2, 4), (2, 2, 4), (4, 1, 4)]  # tensor, pipeline, world


@pytest.mark.parametrize(
    ("model", "distributed", "layout"), covering([("qwen2_5_vl", "bf16"), ("qwen3", "fp32")], [False, True], LAYOUTS)
)
def test_bytes_are_megatron_cores(gloo, checkpoints, model, distributed, layout):
    (kind, precision), (tensor, pipeline, world) = model, layout
    path = checkpoints / kind
    arch = architecture.read(path)
    padded = architecture.padded_vocabulary([arch.vocabulary], tensor)
    found = gloo(world).run(allocated, str(path), tensor, pipeline, precision == "bf16", distributed)
    for stage, data_rank, tensor_rank, named, (*measured, copied, gathered) in found:
        at = Placement(tensor, pipeline, world // (tensor * pipeline), stage, data_rank)
        assert [(p.name, p.numel) for p in stage_parameters(arch, at, padded)] == named
        plan = trained(arch, at, padded, precision, distributed)
        assert [plan.parameters, plan.gradients, plan.optimizer] == measured
        kept = checkpoint_copy(arch, at, padded, precision, distributed)
        if tensor_rank == 0:
            assert copied == kept
        else:
            assert copied <= kept  # the first writes what all hold alike
        assert gathered == 0  # the state is written from where it is
