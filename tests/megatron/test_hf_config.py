"""A config.json means here what it means to transformers, whoever wrote it; what would not is refused by its key."""

import copy
import functools
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.megatron import tiny
from tests.megatron.config_writers import WRITERS, text_of, written
from vold_nemo.config import ConfigError
from vold_nemo.megatron.architecture import FAMILIES, PUBLISHED, Architecture, read

KINDS = [("qwen2", True), ("qwen2", False), ("qwen2_5_vl", True), ("qwen2_5_vl", False), ("qwen3", True), ("qwen3_vl", True),
         ("qwen3_vl", False), ("qwen3_moe", False), ("qwen3_vl_moe", False)]  # fmt: skip
CASES = [(*kind, writer) for kind in KINDS for writer in WRITERS]


@functools.cache
def saved(kind: str, tied: bool) -> str:
    """config.json of a tiny model as the installed transformers writes it."""
    extra = {"head_dim": 8} if kind == "qwen3_vl_moe" else {}  # its class divides hidden by heads
    return tiny.config(kind, tied=tied, num_hidden_layers=2, **extra).to_json_string()


def form(kind: str, tied: bool, writer: str) -> dict:
    return written(json.loads(saved(kind, tied)), writer)


@pytest.mark.parametrize(("kind", "tied", "writer"), CASES)
def test_every_key_has_the_value_that_transformers_gives_it(kind, tied, writer):
    from transformers import CONFIG_MAPPING

    config = form(kind, tied, writer)
    whole = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(config))
    theirs, ours = whole.get_text_config(), Architecture.from_hf(config)
    assert (ours.hidden, ours.layers, ours.heads, ours.kv_groups, ours.ffn, ours.vocabulary, ours.max_positions) == (
        theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads, theirs.num_key_value_heads,
        theirs.intermediate_size, theirs.vocab_size, theirs.max_position_embeddings)  # fmt: skip
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert (ours.tied, ours.rms_eps) == (whole.tie_word_embeddings, theirs.rms_norm_eps)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"] and theirs.rope_parameters["rope_type"] == "default"
    if "moe" in kind:
        assert (ours.experts, ours.experts_per_token, ours.expert_ffn) == (
            theirs.num_experts, theirs.num_experts_per_tok, theirs.moe_intermediate_size)  # fmt: skip
        assert ours.router_normalised == (kind == "qwen3_vl_moe" or theirs.norm_topk_prob)


def test_the_forms_differ_and_the_defaults_are_each_classs_own():
    thetas = {kind: Architecture.from_hf(form(kind, tied, "without_defaults")).rope_theta for kind, tied in KINDS}
    assert thetas["qwen2"] == thetas["qwen3"] == 1e4 and thetas["qwen2_5_vl"] == 1e6 and len(set(thetas.values())) == 3
    for kind, tied in KINDS:
        forms = {json.dumps(form(kind, tied, writer), sort_keys=True) for writer in WRITERS}
        assert len(forms) >= len(WRITERS) - 2, kind  # a dense text model has fewer spellings


@pytest.mark.parametrize("kind", FAMILIES)
def test_settings_that_are_off_where_a_file_does_not_name_them_are_off_in_the_class(kind):
    from transformers import CONFIG_MAPPING

    text = CONFIG_MAPPING[kind]().get_text_config()
    assert text.hidden_act == "silu" and not text.attention_dropout and not getattr(text, "attention_bias", False)
    assert not getattr(text, "use_sliding_window", False) and "per_layer_config" not in text.to_dict()
    assert set(getattr(text, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    assert getattr(text, "decoder_sparse_step", 1) == 1 and not getattr(text, "mlp_only_layers", None)
    assert hasattr(text, "head_dim") == FAMILIES[kind].head_dim


def _logits(kind, tied, writers, folder, gloo, ids):
    """(writer, ours, theirs) for one set of weights under each writer's config.json."""
    import transformers as hf

    extra = {"head_dim": 8} if kind == "qwen3_vl_moe" else {}
    tiny.save(kind, folder, tied=tied, num_hidden_layers=2, **extra)
    auto = hf.AutoModelForImageTextToText if "vl" in kind else hf.AutoModelForCausalLM
    config = json.loads((folder / "config.json").read_text())
    for writer in writers:
        (folder / "config.json").write_text(json.dumps(written(config, writer)))
        with torch.no_grad():
            theirs = auto.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
        (ours,) = gloo(1).run(tiny.logits, folder, 1, 1, False, ids)
        yield writer, ours, theirs


@pytest.mark.parametrize(("kind", "tied", "writers"), [
    ("qwen2_5_vl", True, ["without_defaults", "transformers_4_57"]), ("qwen3_vl_moe", False, ["without_defaults"]),
])  # fmt: skip
def test_logits_are_those_of_transformers_where_the_class_is_asked(kind, tied, writers, tmp_path, gloo):
    for writer, ours, theirs in _logits(kind, tied, writers, tmp_path, gloo, tiny.tokens()):
        assert theirs.std() > 0.1 and (ours - theirs).abs().max() < 1e-4, writer


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_logits_are_those_of_transformers_whoever_wrote_the_config(kind, tied, tmp_path, gloo):
    for writer, ours, theirs in _logits(kind, tied, WRITERS, tmp_path, gloo, tiny.tokens()):
        assert theirs.std() > 0.1 and (ours - theirs).abs().max() < 1e-4, writer


def _change(kind: str, tied: bool = False, *, top: dict | None = None, **text) -> dict:
    config = json.loads(saved(kind, tied))
    text_of(config).update(text)
    return config | (top or {})


ROPE = {"rope_type": "default", "rope_theta": 1000.0}
REFUSED = {
    "rope_scaling beside rope_parameters": (_change, "qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope"),
    "both plain, other theta": (_change, "qwen3", {"rope_scaling": ROPE | {"rope_theta": 5.0}}, "rope_scaling and rope"),
    "theta left out of one": (_change, "qwen2", {"rope_scaling": {"rope_type": "default"}}, "rope_scaling and rope"),
    "two thetas": (_change, "qwen2", {"rope_theta": 1e6}, "rope_theta"),
    "yarn": (_change, "qwen3", {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
    "linear": (_change, "qwen3_vl", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}, "rope_type"),
    "dynamic in the old spelling": (
        _change, "qwen2", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
    "two kinds": (_change, "qwen3", {"rope_parameters": ROPE | {"type": "yarn"}}, "rope_type"),
    "mrope of a text model": (_change, "qwen3", {"rope_parameters": ROPE | {"rope_type": "mrope"}}, "rope_type"),
    "a factor without a kind": (_change, "qwen3", {"rope_parameters": {"rope_theta": 1e3, "factor": 4.0}}, "factor"),
    "one for each kind of layer": (_change, "qwen3", {"rope_parameters": {"full_attention": ROPE}}, "full_attention"),
    "part of the head": (_change, "qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "part of the head, inside": (_change, "qwen3", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "partial_"),
    "rope a list": (_change, "qwen3", {"rope_parameters": [1]}, "rope_parameters"),
    "theta a word": (_change, "qwen3", {"rope_parameters": ROPE | {"rope_theta": "1e6"}}, "rope_theta"),
    "theta infinite": (_change, "qwen3", {"rope_parameters": ROPE | {"rope_theta": float("inf")}}, "rope_theta"),
    "window": (_change, "qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "a list of another length": (_change, "qwen3", {"layer_types": ["full_attention"]}, "layer_types"),
    "eps a word": (_change, "qwen2", {"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
    "eps nan": (_change, "qwen2", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "tied a word": (_change, "qwen3", {"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    "negative groups": (_change, "qwen2", {"num_key_value_heads": -2}, "num_key_value_heads"),
    "groups that do not divide": (_change, "qwen2", {"num_key_value_heads": 3}, "num_key_value_heads"),
    "odd heads": (_change, "qwen3", {"head_dim": 15}, "head_dim"),
    "null where the class has a number": (_change, "qwen3", {"head_dim": None}, "head_dim"),
    "one expert, normalised": (_change, "qwen3_moe", {"num_experts_per_tok": 1}, "num_experts_per_tok"),
    "one expert of Qwen3-VL": (_change, "qwen3_vl_moe", {"num_experts_per_tok": 1}, "num_experts_per_tok"),
    "more experts than there are": (_change, "qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    "two numbers of experts": (_change, "qwen3_moe", {"num_experts": 16}, "num_experts and num_local_experts"),
    "a number of experts and null": (
        _change, "qwen3_moe", {"num_experts": 8, "num_local_experts": None}, "num_experts and num_local_experts"),
    "not normalised in Qwen3-VL": (_change, "qwen3_vl_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    "normalised a word": (_change, "qwen3_moe", {"norm_topk_prob": "yes"}, "norm_topk_prob"),
    "nested keys in a list": (_change, "qwen3_vl", {"top": {"text_config": []}}, "text_config"),
    "Qwen3-VL flat": (_change, "qwen3_vl", {"top": {"text_config": None}}, "text_config"),
    "model type a list": (_change, "qwen3", {"model_type": ["qwen3"]}, "model_type"),
    "a value transformers refuses": (_change, "qwen3", {"rms_norm_eps": None}, "rms_norm_eps' expected float"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_tools_would_read_differently_is_refused_by_its_key(name):
    make, kind, changes, key = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        Architecture.from_hf(make(kind, **changes))
    assert key in f"{error.value}" and error.value.key.startswith("config.json")


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("outer", [True, False, None])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_tie_flags_on_two_levels_mean_what_the_class_makes_of_them(kind, outer, inner):
    from transformers import CONFIG_MAPPING

    config = _change(kind, tie_word_embeddings=inner, top={"tie_word_embeddings": outer})
    if outer is None:
        del config["tie_word_embeddings"]
    assert Architecture.from_hf(config).tied == CONFIG_MAPPING[kind].from_dict(copy.deepcopy(config)).tie_word_embeddings


NO_OBJECT = {
    "list": "[]", "null": "null", "number": "3", "string": '"qwen3"', "deep": "[" * 100_000, "deep object": '{"a":' * 100_000,
    "byte order mark": "\ufeff{}", "digits": "1" * 5000, "cut off": '{"model_type": "qwen3", "hidden',
}  # fmt: skip


@pytest.mark.parametrize("name", [*NO_OBJECT, "no text"])
def test_a_file_that_holds_no_object_is_named(tmp_path, name):
    (tmp_path / "config.json").write_bytes(NO_OBJECT[name].encode() if name in NO_OBJECT else b"\xff\xfe{")
    with pytest.raises(ConfigError) as error:
        read(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value) and len(str(error.value)) < 1000


def test_published_files_and_those_that_leave_nothing_out_are_read_without_transformers():
    configs = [json.loads(file.read_text())["config"] for file in PUBLISHED.glob("*.json")]
    configs += [form(kind, tied, writer) for kind, tied in KINDS for writer in ("transformers_5", "both_spellings")
                if kind != "qwen3_vl_moe"]  # whose flags differ on the two levels: its class is asked
    code = ("import json, sys\nfrom vold_nemo.megatron.architecture import Architecture\n"
            "for config in json.load(sys.stdin): Architecture.from_hf(config)\n"
            "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], input=json.dumps(configs), text=True, timeout=60).returncode == 0


@pytest.mark.parametrize("level", [None, "text_config"])
@pytest.mark.parametrize("left_out", [(), ("rope_theta", "rope_scaling", "rope_parameters")])
def test_a_billion_layers_are_refused_before_any_class_counts_them(level, left_out):
    config = form("qwen2_5_vl", True, "transformers_5")
    at = config if level is None else config[level]
    at["num_hidden_layers"] = 10**9
    for key in left_out:
        config["text_config"].pop(key, None)
    with pytest.raises(ConfigError, match=r"(?s)num_hidden_layers = '1000000000'.*at most 10,000"):
        Architecture.from_hf(config)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(PLAIN, lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=5), i), max_leaves=5)
LIKELY = [
    None, True, False, 0, 1, 2, 3, 8, 16, 64, 61, -1, 1.0, 1e4, 1e6, 0.5, float("nan"), float("inf"), 10**30, 2**63, "", "1",
    "silu", "gelu", "default", "mrope", "yarn", [], {}, [1], ["full_attention"] * 2, {"rope_type": "default"},
    {"type": "yarn", "factor": 4.0}, {"rope_theta": 1000.0}, {"rope_type": "default", "rope_theta": 1000.0},
]  # fmt: skip
KEYS = [
    "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "model_type", "num_attention_heads",
    "head_dim", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "layer_types", "use_sliding_window", "sliding_window", "tie_word_embeddings", "vocab_size", "attention_bias",
    "attention_dropout", "num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size",
    "decoder_sparse_step", "mlp_only_layers", "text_config", "vision_config", "partial_rotary_factor", "per_layer_config",
]  # fmt: skip
GONE = object()


@pytest.mark.long
@pytest.mark.timeout(2400)
@settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=st.sampled_from(CASES), data=st.data())
def test_whatever_stands_in_a_config_is_read_as_transformers_reads_it_or_refused(case, data):
    """Some keys changed or taken out, at either level: an error of a key, or the numbers that transformers' class has."""
    from transformers import CONFIG_MAPPING

    kind = case[0]
    config = form(*case)
    for _ in range(data.draw(st.integers(1, 3))):
        level = config if data.draw(st.booleans()) or not isinstance(config.get("text_config"), dict) else config["text_config"]
        key, value = data.draw(st.sampled_from(KEYS)), data.draw(st.just(GONE) | st.sampled_from(LIKELY) | TREES)
        if value is GONE:
            level.pop(key, None)
        else:
            level[key] = value
    try:
        ours = Architecture.from_hf(copy.deepcopy(config))
    except ConfigError as error:
        assert "config.json" in error.key and len(str(error)) < 3000
        return
    try:
        whole = CONFIG_MAPPING[ours.family].from_dict(copy.deepcopy(config))
    except Exception:  # its strict types also refuse keys that we do not read
        return
    theirs = whole.get_text_config()
    assert ours.family == kind or "model_type" in config
    assert (ours.hidden, ours.layers, ours.heads, ours.kv_groups, ours.vocabulary) == (
        theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.vocab_size)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert (ours.tied, ours.rms_eps) == (whole.tie_word_embeddings, theirs.rms_norm_eps)
    assert theirs.hidden_act == "silu" and (ours.qkv_bias or not theirs.attention_bias)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"] and theirs.rope_parameters["rope_type"] == "default"
    if ours.experts:
        assert (ours.experts, ours.experts_per_token) == (theirs.num_experts, theirs.num_experts_per_tok)
