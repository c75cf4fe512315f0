"""A tokenizer splits as its tokenizer.json says, whatever class transformers makes of the checkpoint."""

import json
import logging

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vold_nemo.config import ConfigError
from vold_nemo.data.templates import load_tokenizer

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREES = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEXT = "It's 1234567,\n  e\u0301t\u00e9 12 \U0001f642 the end<|endoftext|>"


def written(
    folder, kind, model_type, *, split=QWEN2, normaliser=True, settings=(), decoder=None, config=(), tokens=("<|end|>",)
):
    """A byte-level tokenizer with the merges ``12``, ``123`` and ``th``, whose folder says ``kind`` and ``model_type``."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = letters | {"12": 256, "123": 257, "th": 258, "Ġend": 259}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("1", "2"), ("12", "3"), ("t", "h")], **dict(settings)))
    inner.normalizer = normalizers.NFC() if normaliser else None
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoder or decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    said = {"eos_token": "<|end|>", "unk_token": None, "pad_token": "<|end|>", "chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": kind} | dict(config)))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return inner


def ids(tokenizer, text=TEXT):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# model_type and tokenizer_class of checkpoints that transformers makes a Qwen2Tokenizer of, and of some that it does not
REBUILT = [("qwen2", "PreTrainedTokenizerFast"), ("qwen2", "LlamaTokenizerFast"), ("qwen2", "TokenizersBackend"),
           ("qwen2_5_vl", "Qwen2TokenizerFast"), ("qwen3", "Qwen2Tokenizer"), ("qwen3_moe", None)]  # fmt: skip
AS_IT_IS = [("qwen3", "PreTrainedTokenizerFast"), ("qwen2_5_vl", "TokenizersBackend"), ("qwen3_vl", "LlamaTokenizer")]


@pytest.mark.parametrize(("model_type", "kind"), REBUILT + AS_IT_IS)
def test_digits_in_threes_stay_together_under_every_class(tmp_path, caplog, model_type, kind):
    inner = written(tmp_path / "m", kind, model_type, split=THREES)
    tokenizer = load_tokenizer(tmp_path / "m")
    assert ids(tokenizer) == inner.encode(TEXT, add_special_tokens=False).ids
    assert 257 in ids(tokenizer)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    words = "makes a Qwen2Tokenizer of this checkpoint, which differs from its tokenizer.json in pre_tokenizer"
    assert any(words in one for one in said) == ((model_type, kind) in REBUILT)


@pytest.mark.parametrize(
    ("part", "otherwise"),
    [
        ("normalizer", {"normaliser": False}),
        ("pre_tokenizer", {"split": THREES}),
        ("decoder", {"decoder": decoders.Sequence([decoders.ByteLevel(), decoders.Strip("!", 0, 1)])}),
        ("model", {"settings": {"ignore_merges": True}}),
        ("model", {"settings": {"byte_fallback": True}}),
    ],
)
def test_every_part_of_the_file_counts(tmp_path, caplog, part, otherwise):
    inner = written(tmp_path / "m", "Qwen2Tokenizer", "qwen2", **otherwise)
    tokenizer = load_tokenizer(tmp_path / "m")
    found = ids(tokenizer, TEXT + "!")
    assert found == inner.encode(TEXT + "!", add_special_tokens=False).ids
    assert tokenizer.decode(found) == inner.decode(found, skip_special_tokens=False)
    assert f"tokenizer.json in {part}" in caplog.text


def test_a_token_that_only_the_class_has_is_not_added(tmp_path, caplog):
    inner = written(tmp_path / "m", "Qwen2Tokenizer", "qwen2", config={"unk_token": "<|endoftext|>"})
    # here the configuration speaks of it: transformers adds it, and so it is added
    assert len(load_tokenizer(tmp_path / "m")) == inner.get_vocab_size() + 1 and "differs" not in caplog.text
    file = tmp_path / "m" / "tokenizer_config.json"
    content = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("unk_token", "pad_token")}
    file.write_text(json.dumps(content))
    assert len(load_tokenizer(tmp_path / "m")) == inner.get_vocab_size() and "in added_tokens" in caplog.text


def test_added_tokens_keep_their_ids_where_the_configuration_lists_only_some(tmp_path, caplog):
    listed = {"262": {"content": "<mine>", "special": False, "normalized": False}}
    both = ("<|end|>", "<|endoftext|>")
    written(tmp_path / "m", "Qwen2Tokenizer", "qwen3", tokens=both, config={"added_tokens_decoder": listed})
    tokenizer = load_tokenizer(tmp_path / "m")
    assert tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>", "<mine>"]) == [260, 261, 262]
    assert "in added_tokens" in caplog.text


@pytest.mark.parametrize("model_type", ["qwen2", "qwen2_5_vl", "qwen3"])
def test_the_families_own_files_are_left_to_transformers(tmp_path, caplog, model_type):
    from transformers import AutoTokenizer

    byte_level = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)  # as published; no difference
    listed = {"260": "<|end|>", "261": "<|endoftext|>", "262": "<mine>"}
    listed = {i: {"content": token, "special": i != "262", "normalized": False} for i, token in listed.items()}
    written(tmp_path / "m", "Qwen2Tokenizer", model_type, decoder=byte_level, tokens=("<|end|>", "<|endoftext|>"),
            config={"added_tokens_decoder": listed})  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "m")
    assert type(tokenizer) is type(AutoTokenizer.from_pretrained(tmp_path / "m"))
    assert type(tokenizer).__name__ == "Qwen2Tokenizer" and tokenizer.convert_tokens_to_ids("<mine>") == 262
    assert "differs" not in caplog.text


def test_a_length_that_the_file_was_saved_with_cuts_nothing(tmp_path):
    inner = written(tmp_path / "m", "PreTrainedTokenizerFast", "qwen3")
    inner.enable_truncation(4)
    inner.enable_padding(length=64)
    inner.save(str(tmp_path / "m" / "tokenizer.json"))
    inner.no_truncation()
    inner.no_padding()
    assert ids(load_tokenizer(tmp_path / "m")) == inner.encode(TEXT, add_special_tokens=False).ids


@pytest.mark.parametrize("spoil", [{"model": {}}, {"model": 3}, {"added_tokens": [3]}, {"pre_tokenizer": {"type": "None"}}])
def test_a_file_that_describes_no_tokenizer_is_refused_with_its_folder(tmp_path, spoil):
    written(tmp_path / "m", "Qwen2Tokenizer", "qwen2")
    file = tmp_path / "m" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | spoil))
    with pytest.raises(ConfigError, match="model path"):
        load_tokenizer(tmp_path / "m")
