"""Prompts: a row of any dataset becomes chat messages, a true answer and images; or a rejected row with a reason.

A prompt column holds a string or a list of chat messages.  Images come beside it, in a column of their own (a path,
encoded bytes, the ``{bytes, path}`` of ``datasets``, or a list of these), and stand where the messages say so: at
``{"type": "image"}`` parts, at ``<image>`` marks in a string, or, if neither is there, before the user's text.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError, DatasetConfig
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rows import pick, read_rows

IMAGE_MARK = "<image>"
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}


@dataclass
class Prompt:
    """A question.  ``messages`` end with the user's turn; contents are strings, or part lists where images stand."""

    id: str
    messages: list[dict[str, Any]]
    answer: str | None = None
    domain: str | None = None
    verifier: str | None = None  # name in vold_nemo/rewards/registry.py; None = the configured one
    images: list[str | bytes] = field(default_factory=list)  # paths or encoded bytes, in the order of the image parts

    def open_images(self) -> list:
        """The images as RGB ``PIL.Image``, decoded now: a dataset of them would not fit in memory."""
        from PIL import Image

        return [
            Image.open(io.BytesIO(image) if isinstance(image, bytes) else image).convert("RGB") for image in self.images
        ]


class RowError(ValueError):
    """Why a row cannot be used; becomes the reason in ``rejected.jsonl``."""


def load_prompts(
    config: DatasetConfig,
    system_prompt: str | None,
    rejected: Rejected,
    *,
    answers: bool = True,
) -> list[Prompt]:
    """Read ``config.path``.

    Args:
        system_prompt: put before messages that bring no system turn of their own.
        rejected: receives the bad rows; its share is checked at the end.
        answers: whether a row without a usable answer is bad (False for the prompts that the teacher answers).

    Raises:
        ConfigError: nothing to read, or more than ``rejected.max_share`` of the rows are bad.
    """
    prompts: list[Prompt] = []
    known: set[str] = set()
    source = str(config.path)
    rejected.begin(source)
    for number, row, file in read_rows(config, rejected):
        try:
            prompt = _prompt(number, row, file, config, system_prompt, answers)
            if prompt.id in known:
                raise RowError("id: appears twice")
        except RowError as error:
            rejected.add(number, str(error), row, source)
            continue
        known.add(prompt.id)
        prompts.append(prompt)
    total = len(prompts) + rejected.count(source)
    if total == 0:
        raise ConfigError("data path", source, "at least one row", "an empty dataset: correct the path or the split")
    rejected.check(total, source)
    return prompts


def _prompt(
    number: int, row: Any, file: Path | None, config: DatasetConfig, system: str | None, answers: bool
) -> Prompt:
    fields = config.fields
    if not isinstance(row, dict | list):
        raise RowError(f"row: {type(row).__name__} instead of an object")
    images = _images(pick(row, fields.image), file) if fields.image is not None else []
    messages = _messages(pick(row, fields.prompt), len(images))
    if sum(len(text) for text in _texts(messages)) > config.max_characters:
        raise RowError(f"prompt: longer than {config.max_characters} characters")
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Prompt(
        id=_label(row, fields.id, "id") or str(number),
        messages=messages,
        answer=_answer(pick(row, fields.answer), answers),
        domain=_label(row, fields.domain, "domain"),
        verifier=_label(row, fields.verifier, "verifier"),
        images=images,
    )


def _label(row: Any, column: str | None, name: str) -> str | None:
    """A short string column; None if no column is configured or the row leaves it empty."""
    value = pick(row, column) if column is not None else None
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"{name}: {type(value).__name__} instead of a string")
    return str(value)


def _answer(value: Any, required: bool) -> str | None:
    if value is None:
        if required:
            raise RowError("answer: missing")
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"answer: {type(value).__name__} instead of a string or number")
    text = str(value).strip()
    if not text and required:
        raise RowError("answer: empty")
    return text or None


def _texts(messages: list[dict]) -> list[str]:
    texts = []
    for message in messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return texts


def _messages(value: Any, images: int) -> list[dict]:
    """Chat messages whose image parts number ``images``, ending with the user's turn."""
    if value is None:
        raise RowError("prompt: missing")
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowError(f"prompt: {type(value).__name__} instead of a string or a list of messages")
    messages = [_message(message) for message in value]
    while messages and messages[-1]["role"] == "assistant":  # datasets of traces: the model answers itself
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise RowError("prompt: does not end with a user turn")
    messages = _place_images(messages, images)
    if not any(text.strip() for text in _texts(messages)) and not images:
        raise RowError("prompt: empty")
    return messages


def _message(message: dict) -> dict:
    role = ROLES.get(message.get("role") or message.get("from") or "")
    if role is None:
        raise RowError(f"prompt: role {str(message.get('role'))[:40]!r} is not one of system, user, assistant")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if role == "assistant" and content is None:
        return {"role": role, "content": ""}
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RowError(f"prompt: content is {type(content).__name__} instead of a string or a list of parts")
    parts: list[dict] = []
    for part in content:
        if part.get("type") == "image":
            parts.append({"type": "image"})
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise RowError(f"prompt: part of type {str(part.get('type'))[:40]!r} is neither text nor image")
    return {"role": role, "content": parts}


def _place_images(messages: list[dict], images: int) -> list[dict]:
    """Give every image one part; text-only contents become plain strings, which every chat template can render."""
    parted = [m["content"] for m in messages if isinstance(m["content"], list)]
    if images and not any(part["type"] == "image" for parts in parted for part in parts):
        marked = [m for m in messages if isinstance(m["content"], str) and IMAGE_MARK in m["content"]]
        for message in marked:
            parts: list[dict] = []
            for i, text in enumerate(message["content"].split(IMAGE_MARK)):
                parts += [{"type": "image"}] * (i > 0) + [{"type": "text", "text": text}] * bool(text)
            message["content"] = parts
        if not marked:
            user = next(message for message in messages if message["role"] == "user")
            text = user["content"]
            rest = [{"type": "text", "text": text}] if isinstance(text, str) else text
            user["content"] = [{"type": "image"}] * images + rest
    placed = 0
    for message in messages:
        if isinstance(message["content"], str):
            continue
        here = sum(part["type"] == "image" for part in message["content"])
        placed += here
        if not here:
            message["content"] = "".join(part["text"] for part in message["content"])
    if placed != images:
        raise RowError(f"image: {images} given, {placed} in the prompt")
    return messages


def _images(value: Any, file: Path | None) -> list[str | bytes]:
    """Image column of a row; relative paths are beside the data file."""
    from PIL import Image, UnidentifiedImageError

    found: list[str | bytes] = []
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(item, dict):  # how `datasets` stores an image
            item = item.get("bytes") or item.get("path")
        if isinstance(item, str):
            path = Path(item).expanduser()
            item = str(path if path.is_absolute() or file is None else file.parent / path)
        elif not isinstance(item, bytes):
            raise RowError(f"image: {type(item).__name__} instead of a path or encoded bytes")
        try:
            with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item):
                pass  # reads the header only
        except FileNotFoundError:
            raise RowError("image: file not found") from None
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            raise RowError("image: cannot be read") from None
        found.append(item)
    return found
