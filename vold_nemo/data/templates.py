"""From chat messages to token ids, and where an answer ends: both as the model's own files say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError
from vold_nemo.data.prompts import Prompt


def load_tokenizer(path: str | Path, revision: str | None = None):
    """The fast tokenizer of a Hugging Face checkpoint (local folder, or hub id in the local cache); no remote code.

    Raises:
        ConfigError: nothing readable there, or a tokenizer without a chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ConfigError(
            "model path", str(path), "a checkpoint folder with tokenizer.json, or a hub id in the local cache",
            f"correct the path, or fetch it first ({str(error).splitlines()[0][:200]})",
        ) from error  # fmt: skip
    if not tokenizer.chat_template:
        raise ConfigError(
            "model path", str(path), "a tokenizer with a chat template", "add chat_template.jinja to the folder"
        )
    return tokenizer


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
    ``config.json`` is not asked: its ``eos_token_id`` is the base model's.

    Raises:
        ConfigError: neither names one, or an id is not in the vocabulary.
    """
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(str(path)).eos_token_id
    except OSError:  # the file is optional
        named = None
    ids = {named} if isinstance(named, int) else set(named or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    outside = sorted(i for i in ids if not 0 <= i < len(tokenizer))
    if not ids or outside:
        raise ConfigError(
            "eos_token_id", outside or None, f"ids below {len(tokenizer)}", f"correct generation_config.json in {path}"
        )
    return sorted(ids)
