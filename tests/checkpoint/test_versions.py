"""A checkpoint that one megatron-core wrote, the other reads: every number of model and optimizer, and it trains on.

``OTHER_PYTHON`` names the interpreter of an environment with the other version (``make test-mcore19`` does).
"""

import importlib.metadata
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.checkpoint import other_version
from tests.megatron import tiny
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
OTHER = os.environ.get("OTHER_PYTHON")
pytestmark = pytest.mark.skipif(not OTHER, reason="OTHER_PYTHON names no environment with another megatron-core")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen2")
    tiny.save("qwen2", path, tied=False)
    return path


def _elsewhere(verb, source, folder, layout):
    """What each rank tells that the other version ran."""
    world = other_version.LAYOUTS[layout][0]
    command = [OTHER, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", str(free_port()),
               "-m", "tests.checkpoint.other_version", verb, str(source), str(folder), layout]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{verb}_{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("layout", other_version.LAYOUTS)
@pytest.mark.parametrize("wrote", ["this", "the other"])
def test_what_one_version_wrote_the_other_reads(wrote, layout, source, tmp_path, gloo):
    here = gloo(other_version.LAYOUTS[layout][0])
    if wrote == "this":
        written = here.run(other_version.write, source, tmp_path, layout)
        read = _elsewhere("read", source, tmp_path, layout)
    else:
        written = _elsewhere("write", source, tmp_path, layout)
        read = here.run(other_version.read, source, tmp_path, layout)
    assert {one["version"] for one in written} != {one["version"] for one in read}, "both are of one version"
    for before, after in zip(written, read, strict=True):
        assert before["held"].keys() == after["held"].keys()
        assert sum(name.endswith("exp_avg_sq") for name in before["held"]) > 10
        for name, value in before["held"].items():
            assert torch.equal(value, after["held"][name]), name
        torch.testing.assert_close(torch.tensor(before["went on"]), torch.tensor(after["went on"]), rtol=1e-5, atol=0)


def test_another_layout_reads_them_too(source, tmp_path, gloo):
    """Weights that TP2 of the other version wrote, on one rank of this."""
    written = _elsewhere("write", source, tmp_path, "tp2")
    (one,) = gloo(1).run(_weights_on_one_rank, source, tmp_path)
    assert written[0]["version"] != importlib.metadata.version("megatron-core")
    name = "decoder.layers.1.self_attention.linear_proj.weight"  # cut along its columns
    assert torch.equal(one[name], torch.cat([rank["held"][name] for rank in written], dim=1))
    name = "decoder.final_layernorm.weight"
    assert torch.equal(one[name], written[1]["held"][name])


def _weights_on_one_rank(source, folder):
    from tests.megatron import steps
    from vold_nemo.checkpoint import loading
    from vold_nemo.megatron import parallel

    model, *_ = tiny.built(source, 1, 1)
    try:
        loading.load_weights(loading.find_latest(folder), model=model)
        return steps.fingerprint(model)
    finally:
        parallel.destroy()
