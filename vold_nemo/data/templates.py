"""From chat messages to token ids, and where an answer ends: both as the model's own files say."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError
from vold_nemo.config.json_files import read_object
from vold_nemo.config.sources import local_folder
from vold_nemo.data.prompts import Prompt
from vold_nemo.data.tokenizer_file import FILE, as_written

logger = logging.getLogger(__name__)

PROCESSORS_TEMPLATE = "chat_template.json"  # an older form, which transformers' processors read and its tokenizers do not
_ENDS = "generation_config.json"


def load_tokenizer(path: str | Path, revision: str | None = None):
    """The fast tokenizer of a Hugging Face checkpoint (local folder, or hub id in the local cache); no remote code.

    It splits as ``tokenizer.json`` says; where transformers would make another one of it, a warning tells
    (``tokenizer_file.py``).

    Its chat template is the one that transformers uses for a conversation without tools: ``chat_template.jinja``, else
    ``chat_template`` in ``tokenizer_config.json`` (a text, or the one named ``default``), and where there is neither,
    ``chat_template.json``.

    Raises:
        ConfigError: nothing readable there, or a tokenizer without a chat template, or with one that is no template.
    """
    from transformers import AutoTokenizer

    folder = Path(local_folder(str(path), revision))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision or "main")
        kind, (tokenizer, parts) = type(tokenizer).__name__, as_written(tokenizer, folder)
    except ConfigError:
        raise
    except Exception as error:  # OSError, ValueError, and of broken files whatever its readers come to raise (tokenizers: bare)
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            "model path", str(path), "a checkpoint folder with tokenizer.json, or a hub id in the local cache",
            f"correct the path, or fetch it first ({said[0][:200]})",
        ) from error  # fmt: skip
    if parts:
        _warn(
            f"{folder}: transformers makes a {kind} of this checkpoint, which differs from its {FILE} in {', '.join(parts)}. "
            "The file is followed here; wherever else the checkpoint or its exports are used, PreTrainedTokenizerFast does so"
        )
    tokenizer.chat_template = _chat_template(tokenizer.chat_template, folder)
    return tokenizer


def _chat_template(found: str | dict[str, str] | None, folder: Path) -> str:
    """The default among the templates that transformers ``found``, or that of the processor's file in ``folder``."""
    file = folder / PROCESSORS_TEMPLATE
    other = _named(read_object(file, "copy it again").get("chat_template"), file) if file.is_file() else None
    template = _default(found, folder) or _default(other, file)
    if not template:
        raise ConfigError(
            "model path", str(folder), "a tokenizer with a chat template", "add chat_template.jinja to the folder"
        )
    if isinstance(other, str) and other.strip() != template.strip():
        _warn(f"{file} differs from the tokenizer's chat template, which is used here as in transformers' tokenizers")
    _check_syntax(template, folder)
    return template


def _named(templates: Any, file: Path) -> str | dict[str, str] | None:
    """A text, or ``[{"name", "template"}]`` as a map."""
    if isinstance(templates, list) and all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in templates):
        templates = {one["name"]: one["template"] for one in templates}
    texts = templates.values() if isinstance(templates, dict) else (templates,)
    if templates is not None and not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{file}: chat_template", str(templates)[:200], "a text, or a list of named ones", "copy it again")
    return templates


def _default(templates: str | dict[str, str] | None, where: Path) -> str | None:
    if not isinstance(templates, dict):
        return templates
    if "default" not in templates:
        raise ConfigError(
            "model path", f"{where}: chat templates {', '.join(map(repr, sorted(templates)))}", "one that is named 'default'",
            "write the template that prompts are to have into chat_template.jinja",
        )  # fmt: skip
    return templates["default"]


def _check_syntax(template: str, folder: Path) -> None:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([], chat_template=template)  # compiles it, and renders nothing
    except TemplateSyntaxError as error:
        raise ConfigError(
            "model path", f"{folder}: chat template, line {error.lineno}: {error.message}", "a Jinja template",
            "copy the checkpoint's chat template again",
        ) from error  # fmt: skip


def render_prompt(tokenizer, prompt: Prompt | Sequence[dict[str, Any]], *, thinking: bool = False) -> list[int]:
    """Ids of a prompt (or of its messages) under the tokenizer's chat template, ending with the generation prompt.

    ``thinking`` reaches the template as ``enable_thinking`` (Qwen3; other templates ignore it).  An image part gives
    one ``<|image_pad|>``; the engine expands it by the image's size.
    """
    messages = prompt.messages if isinstance(prompt, Prompt) else list(prompt)
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written the special tokens


def eos_ids(path: str | Path, tokenizer) -> list[int]:
    """Ids that end an answer, ascending: ``generation_config.json`` if it names some, and always the tokenizer's own.

    Qwen2.5-VL and Qwen3 chat models end with ``<|im_end|>`` or ``<|endoftext|>``; both are in their generation config.
    Where that file names none, or is not there, an answer may run on where the model meant to end: a warning says so, and
    ``eos_token_id`` of ``config.json``, which is the base model's, is taken in its place, as transformers does.

    Raises:
        ConfigError: neither names one, or an id is not in the vocabulary, or a file cannot be read.
    """
    folder = Path(local_folder(str(path)))
    ids = _ends(folder / _ENDS)
    if not ids:
        ids = _ends(folder / "config.json")
    own = tokenizer.eos_token_id
    if own is not None:
        ids = ids | {own}
    outside = sorted(i for i in ids if not 0 <= i < len(tokenizer))
    if not ids or outside:
        raise ConfigError(
            "eos_token_id", outside or None, f"ids below {len(tokenizer)}", f"correct {_ENDS} in {path}"
        )
    if not _ends(folder / _ENDS):
        _warn(f"{folder / _ENDS} names no eos_token_id: answers end at {sorted(ids)} alone, of config.json and the tokenizer")
    return sorted(ids)


def _ends(file: Path) -> set[int]:
    """Ids under ``eos_token_id`` in a JSON file; none where it is not there or says nothing of them."""
    if not file.is_file():  # generation_config.json is optional
        return set()
    mend = "copy it again from where the checkpoint came from"
    named = read_object(file, mend).get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(one) is int for one in ids):
        raise ConfigError(f"{file}: eos_token_id", str(named)[:200], "an id, a list of ids, or null", mend)
    return set(ids)


@functools.cache
def _warn(text: str) -> None:
    """Once a process."""
    logger.warning(text)
