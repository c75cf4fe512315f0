"""Configs are read as transformers reads them, and what cannot run is refused before a process group exists."""

import json
import subprocess
import sys

import pytest

from tests.megatron import tiny
from vold_nemo.config import ConfigError, ParallelConfig
from vold_nemo.megatron.architecture import Architecture, check_layout, read

# The published config.json of Qwen2.5-VL-3B-Instruct, in what concerns the language backbone: flat, mrope, tied.
QWEN2_5_VL_3B = {
    "model_type": "qwen2_5_vl", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008,
    "max_position_embeddings": 128000, "max_window_layers": 70, "num_attention_heads": 16, "num_hidden_layers": 36,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936, "attention_dropout": 0.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}


def test_flat_published_config_is_read():
    arch = Architecture.from_hf(QWEN2_5_VL_3B)
    assert (arch.hidden, arch.layers, arch.heads, arch.kv_groups, arch.head_dim) == (2048, 36, 16, 2, 128)
    assert (arch.ffn, arch.vocabulary, arch.tied, arch.qkv_bias, arch.qk_norm) == (11008, 151936, True, True, False)
    assert (arch.rope_theta, arch.rms_eps, arch.max_positions) == (1e6, 1e-6, 128000)


@pytest.mark.parametrize(("kind", "tied"), [("qwen2_5_vl", True), ("qwen2_5_vl", False), ("qwen3", True), ("qwen2", False)])
def test_config_written_by_transformers_is_read(tmp_path, kind, tied):
    config = tiny.save(kind, tmp_path, tied=tied).config.get_text_config()
    arch = read(tmp_path)
    assert (arch.hidden, arch.layers, arch.heads) == (
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert (arch.kv_groups, arch.ffn, arch.vocabulary) == (
        config.num_key_value_heads, config.intermediate_size, config.vocab_size)
    assert (arch.tied, arch.head_on_disk, arch.text_prefix) == (tied, not tied, "model.")
    assert arch.rope_theta == config.rope_parameters["rope_theta"] == 1000.0
    assert arch.rms_eps == config.rms_norm_eps and arch.qk_norm == (kind == "qwen3")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, ("model_type", "llama", "qwen2_5_vl")),
        ({"hidden_act": "gelu"}, ("hidden_act", "gelu", "silu")),
        ({"use_sliding_window": True}, ("use_sliding_window", "True")),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ("rope_type", "yarn")),
        ({"num_hidden_layers": "36"}, ("num_hidden_layers", "'36'")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_would_compute_something_else_is_refused(change, words):
    with pytest.raises(ConfigError) as error:
        Architecture.from_hf(QWEN2_5_VL_3B | change)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("content", [None, "{", json.dumps(QWEN2_5_VL_3B)], ids=["no-config", "not-json", "no-weights"])
def test_an_incomplete_folder_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError):
        read(tmp_path)


@pytest.mark.parametrize(
    ("parallel", "world", "keys"),
    [
        (ParallelConfig(), 1, []),
        (ParallelConfig(tensor=8, pipeline=4, sequence=True), 64, []),
        (ParallelConfig(tensor=3), 3, ["parallel.tensor", "parallel.tensor", "parallel.tensor"]),
        (ParallelConfig(pipeline=5), 5, []),
        (ParallelConfig(pipeline=16), 16, ["parallel.pipeline"]),
        (ParallelConfig(tensor=2), 3, ["world size"]),
        (ParallelConfig(sequence=True), 1, ["parallel.sequence"]),
        (ParallelConfig(tensor=2, context=2), 8, []),
        (ParallelConfig(tensor=2, context=2), 6, ["world size"]),
        (ParallelConfig(expert=2), 2, ["parallel.expert"]),
        (ParallelConfig(tensor=0), 1, ["parallel.tensor"]),
        (ParallelConfig(pipeline=4, virtual=3), 4, []),
        (ParallelConfig(pipeline=5, virtual=2), 5, []),  # 6 + 8 + 8 + 8 + 6
        (ParallelConfig(pipeline=5, virtual=3), 5, ["parallel.virtual"]),
        (ParallelConfig(pipeline=4, virtual=2), 4, ["parallel.virtual"]),
        (ParallelConfig(virtual=2), 1, ["parallel.virtual"]),
        (ParallelConfig(pipeline=2, virtual=0), 2, ["parallel.virtual"]),
        (ParallelConfig(tensor=2, pipeline=16, sequence=True), 9, ["parallel.pipeline", "world size"]),
    ],
)
def test_layouts(parallel, world, keys):
    """Qwen2.5-VL-3B: 16 heads, 2 key-value groups, 36 layers; three of tensor=3's reasons are heads, groups, FFN."""
    errors = check_layout(Architecture.from_hf(QWEN2_5_VL_3B), parallel, world)
    assert [error.key for error in errors] == keys
    assert all(error.allowed and error.mend for error in errors)


def test_a_teacher_whose_layers_virtual_stages_do_not_divide_does_without_them():
    arch = Architecture.from_hf(QWEN2_5_VL_3B)
    assert not check_layout(arch, ParallelConfig(pipeline=4, virtual=2), 4, trained=False)
    assert [arch.virtual(4, asked) for asked in (1, 2, 3)] == [1, 1, 3]


def test_layouts_are_checked_without_torch():
    code = "import sys, vold_nemo.megatron.architecture; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
