"""A tokenizer as its ``tokenizer.json`` says, where transformers would make another one of it.

Some of transformers' tokenizer classes take vocabulary and merges from the file and bring the rest with them: splitting rule,
normaliser, decoder, added tokens.  ``AutoTokenizer`` chooses them by ``model_type`` (``qwen2`` is always a ``Qwen2Tokenizer``,
whatever ``tokenizer_class`` says) or by ``tokenizer_class``.  For a model whose own tokenizer splits otherwise (digits in
threes, as Llama 3's and DeepSeek's) the ids would be valid, decode to the same text, and not be those it was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vold_nemo.config.json_files import read_object

FILE = "tokenizer.json"
# Files in which somebody may have written down a token that the main one lacks
_OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_MODEL = (
    "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "dropout", "continuing_subword_prefix", "end_of_word_suffix",
)  # fmt: skip
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


def as_written(tokenizer, folder: Path) -> tuple[Any, list[str]]:
    """``tokenizer``, which ``AutoTokenizer`` made of ``folder``, or the one that its ``tokenizer.json`` describes.

    Returns:
        And the parts in which the two differ; none where the first is returned.

    Raises:
        ConfigError: the file cannot be read.
    """
    from transformers import PreTrainedTokenizerFast  # reads the file as it is

    file = folder / FILE
    if type(tokenizer) is PreTrainedTokenizerFast or not file.is_file():
        return tokenizer, []
    parts = differences(tokenizer, read_object(file, "copy the tokenizer again"), folder)
    return (PreTrainedTokenizerFast.from_pretrained(folder), parts) if parts else (tokenizer, [])


def differences(tokenizer, written: dict[str, Any], folder: Path) -> list[str]:
    """Parts of the file's content that decide ids or texts and that ``tokenizer`` has otherwise."""
    made, asked = tokenizer.backend_tokenizer, _without_vocabulary(written)
    found = [part for part in _PARTS if _state(getattr(made, part), part) != _state(getattr(asked, part), part)]
    if type(made.model) is not type(asked.model) or _settings(made.model) != _settings(asked.model):
        found.append("model")
    added = {number: _flags(token) for number, token in tokenizer.added_tokens_decoder.items()}
    listed = written.get("added_tokens", [])
    known = {token["id"]: (token["content"], *(token[flag] for flag in _FLAGS)) for token in listed}
    own = [token[0] for number, token in added.items() if number not in known]
    # the class' own defaults: a token that no file of the folder speaks of
    strange = own and not all(_mentioned(json.dumps(token, ensure_ascii=False), folder) for token in own)
    if strange or any(added.get(number) != token for number, token in known.items()):
        found.append("added_tokens")
    return found


def _without_vocabulary(written: dict[str, Any]):
    """The file's tokenizer without the ten megabytes of its vocabulary."""
    from tokenizers import Tokenizer

    model = dict(written["model"])
    if model.get("type") in ("BPE", "WordLevel", "WordPiece"):
        model |= {"vocab": {}} | ({"merges": []} if "merges" in model else {})
    return Tokenizer.from_str(json.dumps(written | {"model": model, "added_tokens": []}))


def _state(part, name: str) -> Any:
    return None if part is None else _deciding(json.loads(part.__getstate__()), name)


def _deciding(state: Any, name: str) -> Any:
    """Without what decides neither ids nor texts: offsets are not used, and a ByteLevel decoder has no settings."""
    if isinstance(state, list):
        return [_deciding(one, name) for one in state]
    if not isinstance(state, dict):
        return state
    if name == "decoder" and state.get("type") == "ByteLevel":
        return {"type": "ByteLevel"}
    return {key: _deciding(value, name) for key, value in state.items() if key != "trim_offsets"}


def _settings(model) -> list[Any]:
    return [getattr(model, name, None) or None for name in _MODEL]


def _flags(token) -> tuple[Any, ...]:
    return token.content, *(getattr(token, flag) for flag in _FLAGS)


def _mentioned(token: str, folder: Path) -> bool:
    return any(token in (folder / name).read_text("utf-8") for name in _OTHERS if (folder / name).is_file())
