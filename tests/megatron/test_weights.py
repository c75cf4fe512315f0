"""Weights go in and come out as the same bytes; a checkpoint that does not fit is refused by name."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.covering import covering
from tests.megatron import tiny
from vold_nemo.config import ConfigError
from vold_nemo.megatron import architecture, tensors, weights
from vold_nemo.megatron.names import hf_names, placements
from vold_nemo.megatron.weights import check_names

LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders by name: classic layout tied, untied, bf16; transformers 5's own layout; a stored tied head."""
    root = tmp_path_factory.mktemp("checkpoints")
    tiny.save("qwen2_5_vl", root / "tied", tied=True)
    tiny.save("qwen2_5_vl", root / "untied", tied=False)
    tiny.save("qwen3", root / "bf16", tied=False, dtype=torch.bfloat16)
    shutil.copytree(root / "tied", root / "new_layout")
    moved = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else f"model.{name}": value
        for name, value in load_file(root / "tied" / tensors.SINGLE).items()
    }
    save_file(moved, root / "new_layout" / tensors.SINGLE, metadata={"format": "pt"})
    shutil.copytree(root / "tied", root / "stored_head")
    stored = load_file(root / "tied" / tensors.SINGLE)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, root / "stored_head" / tensors.SINGLE, metadata={"format": "pt"})
    return root


def backbone(folder) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_file(folder / tensors.SINGLE).items() if "visual" not in name}


@pytest.mark.parametrize(
    ("name", "layout"), covering(["tied", "untied", "bf16", "new_layout", "stored_head"], LAYOUTS, strength=1)
)
def test_streamed_weights_are_the_bytes_and_names_on_disk(checkpoints, name, layout, gloo):
    folder, dtype = checkpoints / name, torch.bfloat16 if name == "bf16" else torch.float32
    expected = backbone(folder)
    for found in gloo(layout[0] * layout[1]).run(tiny.streamed, folder, *layout, dtype):
        assert list(found) == hf_names(architecture.read(folder))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == dtype and torch.equal(found[key], value), key


@pytest.mark.parametrize("layout", [(2, 2), (4, 1)], ids=lambda x: f"tp{x[0]}pp{x[1]}")
@pytest.mark.parametrize("name", ["untied", "stored_head"])
def test_streamed_weights_are_the_bytes_on_disk_when_gathered_a_few_rows_at_a_time(checkpoints, name, layout, gloo):
    """1600 bytes of both or all four ranks: rows that end inside a head, and a last slice that is shorter."""
    expected = backbone(checkpoints / name)
    for found in gloo(4).run(tiny.sliced, checkpoints / name, *layout, 1600):
        assert list(found) == hf_names(architecture.read(checkpoints / name)) and found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


def counted(path, tensor, pipeline):
    """What this rank streams; entries that it read from the files, and that its parameters hold."""
    from vold_nemo.megatron import parallel

    read, whole = 0, weights.Files.slice

    def slice_(files, *asked):
        nonlocal read
        found = whole(files, *asked)
        read += found.numel()
        return found

    weights.Files.slice = slice_
    try:
        model, arch, layout = tiny.built(path, tensor, pipeline)
        return dict(weights.stream_hf(model, arch, layout)), read, sum(p.numel() for p in model.parameters())
    finally:
        weights.Files.slice = whole
        parallel.destroy()


def test_a_rank_reads_its_own_slices_only_of_a_checkpoint_in_several_files_of_another_precision(tmp_path, gloo):
    model = tiny.save("qwen2", tmp_path / "one", tied=False, dtype=torch.float16)
    model.save_pretrained(tmp_path / "several", max_shard_size="60KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 3
    padding = 3 * 64  # entries: 61 rows are padded to 64, on the last rank
    for found, read, held in gloo(4).run(counted, tmp_path / "several", 2, 2):
        assert held - padding <= read <= held
        for name, value in load_file(tmp_path / "one" / tensors.SINGLE).items():
            assert found[name].dtype == torch.float32 and torch.equal(found[name], value.float()), name


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_parts_of_all_ranks_together_hold_every_row_once(checkpoints, tensor):
    """Eight ranks on two key-value groups: parts begin and end inside a head."""
    arch = replace(architecture.read(checkpoints / "untied"), ffn=96)
    for place in placements(arch, tensor, 64):
        if not place.split:
            continue
        parts = [place.part(rank, tensor) for rank in range(tensor)]
        assert len({sum(block.size for block in part) for part in parts}) == 1
        for source, shape in enumerate(place.shapes):
            rows = [
                row for part in parts for b in part if b.source == source for row in range(b.start, b.start + b.size)
            ]
            assert sorted(rows) == list(range(shape[place.axis])), place.megatron


def _broken(checkpoints, tmp_path, change):
    folder = tmp_path / "broken"
    shutil.copytree(checkpoints / "untied", folder)
    values = load_file(folder / tensors.SINGLE)
    change(values)
    save_file(values, folder / tensors.SINGLE)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("model.layers.1.self_attn.k_proj.bias"),
         ("model.layers.1.self_attn.k_proj.bias", "decoder.layers.1.self_attention.linear_qkv.bias")),
        (lambda v: v.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(5, 64)}),
         ("model.layers.2.mlp.up_proj.weight", "decoder.layers.2.mlp.linear_fc1.weight", "[5, 64]", "[96, 64]")),
        (lambda v: v.update({"model.layers.0.mlp.gate.weight": torch.zeros(4, 64)}),
         ("model.layers.0.mlp.gate.weight", "would be lost")),
        (lambda v: v.pop("lm_head.weight"), ("lm_head.weight", "output_layer.weight")),
    ],
    ids=["missing", "misshapen", "extra", "no-head"],
)
def test_unfit_tensors_are_named_on_both_sides(checkpoints, tmp_path, change, words):
    folder = _broken(checkpoints, tmp_path, change)
    arch = architecture.read(folder)
    with pytest.raises(ConfigError) as error:
        check_names(arch, weights.Files(folder), 2, 64)
    for word in words:
        assert word in str(error.value)


def test_a_tied_model_with_another_head_on_disk_is_refused(checkpoints, tmp_path, gloo):
    folder = tmp_path / "other_head"
    shutil.copytree(checkpoints / "stored_head", folder)
    values = load_file(folder / tensors.SINGLE)
    values["lm_head.weight"][60] += 1
    save_file(values, folder / tensors.SINGLE)
    with pytest.raises(AssertionError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        gloo(1).run(tiny.streamed, folder, 1, 1)


def test_a_cut_off_file_and_an_index_without_its_tensor_are_refused(checkpoints, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(checkpoints / "tied", folder)
    (folder / tensors.SINGLE).write_bytes((folder / tensors.SINGLE).read_bytes()[:50])
    with pytest.raises(ConfigError, match="a safetensors file"):
        tensors.index(folder)
    shutil.copyfile(checkpoints / "tied" / tensors.SINGLE, folder / tensors.SINGLE)
    (folder / tensors.INDEX).write_text(json.dumps({"weight_map": {"model.lost.weight": tensors.SINGLE}}))
    with pytest.raises(ConfigError, match=r"model\.lost\.weight"):
        tensors.index(folder)


def built_from_another_table(path, family, into):
    """Load ``path`` with the rules of ``family`` into a model built as ``into``."""
    from vold_nemo.megatron import build, parallel

    layout = parallel.initialize(1, 1, seed=1, device="cpu")
    try:
        arch = architecture.read(path)
        other = replace(arch, qkv_bias=into == "qwen2", qk_norm=into == "qwen3")
        model = build.build_model(other, layout, padded_vocabulary=64, dtype=torch.float32)
        weights.load_hf(model, replace(arch, family=family), layout, weights.Files(path))
    except ConfigError as error:
        return str(error)
    finally:
        parallel.destroy()


def test_a_rule_whose_parameter_the_model_lacks_is_refused(checkpoints, gloo):
    message = gloo(1).run(built_from_another_table, checkpoints / "tied", "qwen2", "qwen3")[0]
    assert "decoder.layers.0.self_attention.linear_qkv.bias" in message and "model.layers.0.self_attn.q_proj.bias" in message
    message = gloo(1).run(built_from_another_table, checkpoints / "bf16", "qwen3", "qwen2")[0]
    assert "decoder.layers.0.self_attention.q_layernorm.weight" in message


def _cut(folder):
    with (folder / tensors.SINGLE).open("rb+") as file:
        file.truncate((folder / tensors.SINGLE).stat().st_size - 100)


def _index_of_absent_files(folder):
    names = tensors.header(folder / tensors.SINGLE)
    (folder / tensors.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}))
    (folder / tensors.SINGLE).unlink()


def _html_for_an_index(folder):
    (folder / tensors.INDEX).write_text("<html>404</html>")


def _pickle_for_a_tensor_file(folder):
    torch.save({"weight": torch.zeros(1)}, folder / tensors.SINGLE)


def _other_models_config(folder):
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    text["hidden_size"] = 128
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_cut, (tensors.SINGLE, "bytes, as its header says", "copy the checkpoint again")),
        (_index_of_absent_files, (tensors.INDEX, "model-00001-of-00002.safetensors", "not there (1 of 1 files)")),
        (_html_for_an_index, (tensors.INDEX, "a JSON object", "copy the index again")),
        (_pickle_for_a_tensor_file, (tensors.SINGLE, "a safetensors file")),
        (_other_models_config, ("config.json", "[61, 128]", "[61, 64]", "embed_tokens", "copy it again")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_spoilt_checkpoint_is_named_with_its_cure(checkpoints, tmp_path, spoil, words):
    folder = tmp_path / "spoilt"
    shutil.copytree(checkpoints / "untied", folder)
    spoil(folder)
    with pytest.raises(ConfigError) as error:
        architecture.read(folder)
    assert all(word in str(error.value) for word in words), error.value
