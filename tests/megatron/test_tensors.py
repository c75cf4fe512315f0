"""What a safetensors header or an index claims is checked before it is used; a folder has one set of weights, unpacked."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tests.megatron import tiny
from vold_nemo.config import ConfigError
from vold_nemo.megatron import architecture, tensors, weights

A, B = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def safetensors_file(path, table, data: int = 32, length: int | None = None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return path


def opens(path) -> bool:
    """Whether the format's own reader takes the file."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


HOSTILE = {
    "negative offset": {"a": A | {"data_offsets": [-8, 16]}, "b": B},
    "backwards": {"a": A | {"data_offsets": [24, 0]}, "b": B},
    "overlap": {"a": A, "b": B | {"data_offsets": [16, 24]}},
    "the same bytes twice": {"a": A, "c": A, "b": B},
    "hole": {"a": A, "b": B | {"data_offsets": [26, 34]}},
    "float offsets": {"a": A | {"data_offsets": [0.0, 24.0]}, "b": B},
    "three offsets": {"a": A | {"data_offsets": [0, 24, 32]}, "b": B},
    "offsets a word": {"a": A | {"data_offsets": "ab"}, "b": B},
    "negative shape": {"a": A | {"shape": [-2, -3]}, "b": B},
    "shape of another size": {"a": A | {"shape": [2, 2]}, "b": B},
    "shape beyond the file": {"a": A | {"shape": [10**30, 10**30]}, "b": B},
    "shape a number": {"a": A | {"shape": 6}, "b": B},
    "true for a size": {"a": A | {"shape": [True, 6]}, "b": B},
    "unknown type": {"a": A | {"dtype": "F33"}, "b": B},
    "type a list": {"a": A | {"dtype": ["F32"]}, "b": B},
    "no offsets": {"a": {"dtype": "F32", "shape": [2, 3]}, "b": B},
    "a row that is none": {"a": 3, "b": B},
    "metadata a list": {"__metadata__": ["pt"], "a": A, "b": B},
    "metadata with a number": {"__metadata__": {"step": 3}, "a": A, "b": B},
    "a list": [A, B],
    "a number": 3,
    "deep": b'{"a":' * 50_000,
    "not UTF-8": b'{"\xff": 3}',
}  # fmt: skip


def test_a_sound_file_is_listed_in_the_order_of_its_bytes(tmp_path):
    for about in ({"format": "pt"}, {}, None):
        file = safetensors_file(tmp_path / "x", {"b": B, "__metadata__": about, "a": A})
        found = tensors.header(file)
        assert list(found) == ["a", "b"] and found["b"].shape == (4,) and found["b"].nbytes == 8 and opens(file)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_the_formats_reader_refuses_is_an_error_of_its_file(tmp_path, name):
    file = safetensors_file(tmp_path / "model.safetensors", HOSTILE[name])
    assert not opens(file)
    with pytest.raises(ConfigError) as error:
        tensors.header(file)
    assert str(file) in str(error.value) and len(str(error.value)) < 2000


@pytest.mark.parametrize(("length", "data"), [(2**63, 32), (2**64 - 1, 0), (10_000, 0), (None, 31), (None, 33), (0, 0)],
                         ids=["2^63", "2^64-1", "beyond the file", "a byte short", "a byte long", "empty"])  # fmt: skip
def test_a_size_that_is_not_the_files_is_refused(tmp_path, length, data):
    file = safetensors_file(tmp_path / "x", {"a": A, "b": B}, data, length)
    assert not opens(file)
    with pytest.raises(ConfigError, match=r"bytes|line 1"):
        tensors.header(file)


def test_a_header_larger_than_the_format_allows_is_not_read(tmp_path):
    file = tmp_path / "x"
    with file.open("wb") as handle:
        handle.write((tensors.LARGEST_HEADER + 1).to_bytes(8, "little") + b"{")
        handle.truncate(tensors.LARGEST_HEADER + 100)  # sparse
    with pytest.raises(ConfigError, match="at most 100000000"):
        tensors.header(file)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.save("qwen2_5_vl", folder, tied=True, num_hidden_layers=2)
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


OUTSIDE = ["../outside.safetensors", "/etc/passwd", "a/../../b", "", ".", "..", "a\\b", "a\0b", 3, None, ["a"]]


@pytest.mark.parametrize("part", OUTSIDE)
def test_an_index_names_files_of_its_own_folder(copy, part):
    names = tensors.header(copy / tensors.SINGLE)
    (copy / tensors.SINGLE).rename(copy.parent / "outside.safetensors")
    (copy / tensors.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, part)}))
    with pytest.raises(ConfigError) as error:
        tensors.index(copy)
    assert "beside the index" in str(error.value) and tensors.INDEX in error.value.key


def test_an_index_without_a_map_is_refused(copy):
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}', "[" * 100_000):
        (copy / tensors.INDEX).write_text(content)
        with pytest.raises(ConfigError) as error:
            tensors.index(copy)
        assert tensors.INDEX in error.value.key, content


def test_two_sets_of_weights_are_refused_whichever_is_newer(copy, tmp_path):
    """transformers takes the single file; training used to take the shards."""
    values = load_file(copy / tensors.SINGLE)
    half = dict(list(values.items())[: len(values) // 2])
    save_file({name: value + 1 for name, value in half.items()}, copy / "model-00001-of-00002.safetensors")
    rest = {name: value + 1 for name, value in values.items() if name not in half}
    save_file(rest, copy / "model-00002-of-00002.safetensors")
    placed = {name: f"model-0000{1 if name in half else 2}-of-00002.safetensors" for name in values}
    (copy / tensors.INDEX).write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(ConfigError, match="one set of weights"):
        architecture.read(copy)
    (copy / tensors.SINGLE).unlink()
    assert set(tensors.index(copy)) == set(values) and architecture.read(copy).layers == 2


def test_an_index_of_one_file_is_no_second_set(copy):
    names = tensors.header(copy / tensors.SINGLE)
    (copy / tensors.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, tensors.SINGLE)}))
    assert tensors.index(copy) == names
    (copy / tensors.INDEX).write_text(json.dumps({"weight_map": {next(iter(names)): tensors.SINGLE}}))
    with pytest.raises(ConfigError, match="all tensors of"):  # transformers reads them all
        tensors.index(copy)


FORMS = {
    "adapter_config.json": ({}, "merge_and_unload"), "quantize_config.json": ({}, "quantize_config.json"),
    "quant_config.json": ({}, "quant_config.json"), "hf_quant_config.json": ({}, "hf_quant_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_an_adapter_or_a_quantised_source_is_refused_with_the_way_out(copy, name):
    content, words = FORMS[name]
    (copy / name).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        architecture.read(copy)


def test_an_adapter_alone_and_a_quantised_config_are_named(copy, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="merge_and_unload"):
        architecture.read(tmp_path)
    config = json.loads((copy / "config.json").read_text())
    for where in (config, config["text_config"]):
        where["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match="quantization_config = 'gptq'"):
            architecture.read(copy)
        where["quantization_config"] = None
    (copy / "config.json").write_text(json.dumps(config))
    assert architecture.read(copy).tied


def test_layers_that_the_weights_lack_or_have_too_many_of_are_the_configs_error(copy):
    config = json.loads((copy / "config.json").read_text())
    for layers in (1, 3, 10**9):
        config["text_config"] |= {"num_hidden_layers": layers, "layer_types": None}
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match="num_hidden_layers"):
            architecture.read(copy)


def test_buffers_and_newer_names_of_the_tower_load_as_in_transformers_and_are_exported(copy, tmp_path, gloo):
    """``model.visual`` beside ``model.layers``, and the frequencies that older tools stored in every layer."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    values = load_file(copy / tensors.SINGLE)
    moved = {f"model.{name}" if name.startswith("visual.") else name: value for name, value in values.items()}
    extra = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    save_file(moved | extra | {"model.rotary_emb.inv_freq": torch.ones(4)}, copy / tensors.SINGLE, metadata={"format": "pt"})
    theirs, said = Qwen2_5_VLForConditionalGeneration.from_pretrained(copy, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    ids = tiny.tokens()
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
    (ours,) = gloo(1).run(tiny.logits, copy, 1, 1, False, ids)
    assert expected.std() > 0.1 and (ours - expected).abs().max() < 1e-4
    gloo(1).run(tiny.exported, copy, tmp_path / "hf", 1, 1, 10**9)
    again = load_file(tmp_path / "hf" / tensors.SINGLE)
    assert again.keys() == moved.keys() | extra.keys() | {"model.rotary_emb.inv_freq"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_packed_numbers_are_not_taken_for_weights(copy, dtype):
    values = load_file(copy / tensors.SINGLE)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(values | {name: values[name].to(dtype)}, copy / tensors.SINGLE)
    with pytest.raises(ConfigError, match="unquantised") as error:
        weights.check_names(architecture.read(copy), weights.Files(copy), 1, 64)
    assert name in error.value.key


def test_a_text_model_has_no_tower_that_could_be_passed_over(tmp_path):
    tiny.save("qwen3", tmp_path, num_hidden_layers=1)
    values = load_file(tmp_path / tensors.SINGLE)
    save_file(values | {"model.visual.blocks.0.weight": torch.ones(2)}, tmp_path / tensors.SINGLE, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model\.visual\.blocks\.0\.weight"):
        weights.check_names(architecture.read(tmp_path), weights.Files(tmp_path), 1, 64)


numbers = st.one_of(st.integers(-4, 40), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
rows = st.one_of(
    st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F33", "", None, 3]),
        "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), st.lists(numbers, max_size=3), numbers),
        "data_offsets": st.one_of(st.tuples(st.integers(0, 40), st.integers(0, 40)), st.lists(numbers, max_size=3), numbers),
    }),
    st.recursive(numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)),
)  # fmt: skip
tables = st.dictionaries(st.one_of(st.sampled_from(["a", "b", "__metadata__"]), st.text(max_size=4)), rows, max_size=4)


@pytest.mark.long
@pytest.mark.timeout(2400)
@settings(max_examples=6000, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=st.one_of(tables, tables.map(lambda t: {"a": A, "b": B} | t), numbers), data=st.sampled_from([0, 24, 32, 40]),
       length=st.sampled_from([None] * 6 + [0, 1, 7, 2**40, 2**64 - 1]), cut=st.integers(0, 60))  # fmt: skip
def test_headers_are_taken_if_and_only_if_the_formats_reader_takes_them(tmp_path, table, data, length, cut):
    file = safetensors_file(tmp_path / "x", table, data, length)
    if cut > 50:
        file.write_bytes(file.read_bytes()[: -(cut - 50)])
    try:
        found = tensors.header(file)
    except ConfigError:
        assert not opens(file)
        return
    assert opens(file)
    with safe_open(file, framework="pt") as theirs:
        assert set(theirs.keys()) == set(found)


trees = st.recursive(numbers, lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=8), i, max_size=3))
known = st.sampled_from(["weight_map", "eos_token_id", "chat_template", "metadata", "model_type", "text_config"])
contents = st.one_of(
    st.binary(max_size=60), st.text(max_size=40).map(str.encode), st.integers(1, 5000).map(lambda n: b"[" * n),
    (trees | st.dictionaries(known, trees)).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(2400)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=contents, name=st.sampled_from(
    ["config.json", "generation_config.json", tensors.INDEX, tensors.SINGLE, "chat_template.json"]))  # fmt: skip
def test_no_small_file_of_a_checkpoint_ends_in_a_traceback(checkpoint, tmp_path_factory, content, name):
    """Whatever is in one of its files: the folder is read, or an error names it."""
    from vold_nemo.data.templates import _chat_template, _ends

    folder = tmp_path_factory.getbasetemp() / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    ends, template = lambda f: _ends(f / "generation_config.json"), lambda f: _chat_template(None, f)
    for reading in (architecture.read, tensors.index, ends, template):
        try:
            reading(folder)
        except ConfigError as error:
            assert str(folder) in str(error) and len(str(error)) < 4000
