"""The real model classes through NeMo's own calls: ``save_to`` and ``restore_from``, packed and unpacked, in any layout."""

from __future__ import annotations

import pytest
import torch

from tests.models.stages import build_sft, build_vold, configuration, layout_of

SLOW = 300


def trained_and_saved(folder, stage, pack, *overrides):
    """One step, then ``save_to``; the weights, by name on disk."""
    from vold_nemo.megatron import parallel

    config = configuration(folder, "rollout.probe_tolerance=1e9", *overrides)
    layout = layout_of(config)
    model = build_sft(config) if stage == "sft" else build_vold(config, layout)
    model.train_step(0)
    model._save_restore_connector.pack_nemo_file = pack
    model.save_to(str(folder / stage / ("packed.nemo" if pack else "unpacked/model.nemo")))
    weights = {name: tensor.numpy().copy() for name, tensor in model.hf_weights()}
    parallel.destroy()
    return weights


def restored(folder, stage, pack, *overrides):
    from vold_nemo.checkpoint import nemo_archive
    from vold_nemo.megatron import parallel
    from vold_nemo.models.sft import MegatronSFTModel
    from vold_nemo.models.vold import MegatronVOLDModel

    layout_of(configuration(folder, *overrides))
    connector = nemo_archive.sharded_connector()()
    file = folder / stage / "packed.nemo"
    if not pack:
        file = folder / stage / "unpacked" / "model.nemo"
        connector.model_extracted_dir = str(file.parent)
    kind = MegatronSFTModel if stage == "sft" else MegatronVOLDModel
    model = kind.restore_from(str(file), save_restore_connector=connector)
    weights = {name: tensor.numpy().copy() for name, tensor in model.hf_weights()}
    parallel.destroy()
    return type(model).__name__, weights


@pytest.mark.parametrize(("stage", "pack", "saved", "read"), [
    ("sft", True, "tp2", "pp2"), ("vold", False, "tp2", "single"),
    pytest.param("sft", False, "pp2", "single", marks=pytest.mark.long),
    pytest.param("vold", True, "pp2", "tp2", marks=pytest.mark.long),
])  # fmt: skip
def test_what_one_layout_saved_another_restores_bit_for_bit(gloo, world, stage, pack, saved, read):
    import shutil

    shutil.rmtree(world / stage, ignore_errors=True)
    (world / stage / "unpacked").mkdir(parents=True)
    before = gloo(2).run(trained_and_saved, world, stage, pack, f"parallel={saved}", timeout=SLOW)[0]
    for name, after in gloo(1 if read == "single" else 2).run(restored, world, stage, pack, f"parallel={read}", timeout=SLOW):
        assert name == {"sft": "MegatronSFTModel", "vold": "MegatronVOLDModel"}[stage]
        assert before.keys() == after.keys()
        assert all(torch.equal(torch.from_numpy(before[key]), torch.from_numpy(after[key])) for key in before)
