"""What the plan says of an export: its peak is the tracker's, and its job has one process."""

from importlib.metadata import version

import pytest
import torch

from tests.megatron import tiny
from tests.planning.allocations import export_peak
from vold_nemo.config.compose import compose
from vold_nemo.megatron import architecture
from vold_nemo.planning import launch, memory
from vold_nemo.planning.memory import GIB
from vold_nemo.planning.plan import make_plan, models_of
from vold_nemo.planning.search import cheapest_changes

SHAPES = {  # kind, tied, vocabulary, hidden, feed-forward
    "a layer": ("qwen2_5_vl", False, 512, 256, 1024), "attention": ("qwen3", False, 256, 256, 64),
    "the embedding": ("qwen2_5_vl", True, 8192, 256, 256), "the head": ("qwen3", False, 8192, 256, 256),
}  # fmt: skip


@pytest.mark.parametrize("largest, precision", [(name, "bf16") for name in SHAPES] + [("a layer", "fp32")])
def test_the_peak_of_an_export_is_that_of_the_tracker(gloo, tmp_path, largest, precision):
    kind, tied, vocabulary, hidden, ffn = SHAPES[largest]
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    tiny.save(kind, tmp_path / "source", tied=tied, dtype=dtype, vocab_size=vocabulary, hidden_size=hidden,
              intermediate_size=ffn, num_hidden_layers=3)  # fmt: skip
    measured = gloo(1).run(export_peak, tmp_path / "source", tmp_path / "out", precision)[0]
    planned = sum(memory.streamed(architecture.read(tmp_path / "source"), dtype.itemsize, cuda=False))
    if largest == "attention" and version("megatron-core") != "0.16.1":
        # Another order of reading: after the largest weight comes a norm, where the plan supposes the worst, the next largest.
        planned -= dtype.itemsize * 256 * 128  # of the output projection
    assert planned == pytest.approx(measured, rel=0.10)


def test_an_export_is_one_process_that_holds_the_student_only_to_verify_it():
    config = compose(["experiment=qwen2_5_vl_72b_from_235b"])
    models = models_of(config)
    for job in (stage for stage in launch.stages(config) if stage.recipe == "export_hf"):
        assert job.tasks == 1 and "parallel.tensor=1" in job.overrides
    row = next(phase for phase in make_plan(config, models).stages[1].phases if phase.name == "export")
    assert row.parts["parameters"] < 2.4 * GIB  # 152,064 x 8,192 in bf16
    bare = compose(["experiment=qwen2_5_vl_72b_from_235b", "export.verify=true"])
    row = next(phase for phase in make_plan(bare, models).stages[1].phases if phase.name == "export")
    assert row.parts["engine"] == 2 * 73_410_777_344  # as the hub counts them, vision tower included
    assert row.parts["parameters"] > 2 * 72e9
    changes = cheapest_changes(bare, models)
    assert ("export.verify=false",) in [names for names, _ in changes]
