"""The prompt column of a row as chat messages: roles that a template renders, and one part for each image.

It holds a string, a list of ``{role, content}`` or ``{from, value}``, or such a list as text (JSON, or the ``repr`` of
Python that CSV files have).  Images stand where the messages say so: at ``{"type": "image"}`` parts, at marks in a text
(:data:`IMAGE_MARKS`), or, if neither is there, before the user's first text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

# What datasets write where an image stands: the common mark, and the ids that Qwen's template makes of it.
IMAGE_MARK = "<image>"
IMAGE_MARKS = re.compile(r"<image>|(?:<\|vision_start\|>)?<\|image_pad\|>(?:<\|vision_end\|>)?")
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
FROM_TEXT = "messages that were written as text are read as messages"
NO_IMAGE = "the mark <image> stands in a prompt without images (fields.image names the column that holds them)"


class RowError(ValueError):
    """Why a row cannot be used; becomes the reason in ``rejected.jsonl``."""


def read_messages(
    value: Any, images: int, *, column: bool = True, tell: Callable[[str], object] = lambda said: None
) -> tuple[list[dict], Any]:
    """Chat messages whose image parts number ``images``, ending with the user's turn; and the assistant's turn behind it.

    Args:
        column: whether the set's images were asked for: then a mark without an image is a wrong count.
        tell: called with what was done to the row, to be counted.

    Raises:
        RowError: no messages, or not ones that a template can render.
    """
    if value is None:
        raise RowError("prompt: missing")
    if isinstance(value, str):
        found = _written_messages(value)
        if found is not None:
            tell(FROM_TEXT)
        value = found if found is not None else [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowError(f"prompt: {type(value).__name__} instead of a string or a list of messages")
    messages = [_message(message) for message in value]
    trace = None
    while messages and messages[-1]["role"] == "assistant":  # datasets of traces: the model answers itself
        trace = messages.pop()["content"]
    if not messages or messages[-1]["role"] != "user":
        raise RowError("prompt: does not end with a user turn")
    messages = _place_images(messages, images, column, tell)
    if not any(text.strip() for text in texts_of(messages)) and not images:
        raise RowError("prompt: empty")
    return messages, trace


def texts_of(messages: list[dict]) -> list[str]:
    """Every text of the messages, in order."""
    texts = []
    for message in messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return texts


def append_text(message: dict[str, Any], text: str) -> None:
    """Put ``text`` behind what the message says."""
    if isinstance(message["content"], str):
        message["content"] += text
    else:
        message["content"].append({"type": "text", "text": text})


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which neither a tokenizer nor a terminal takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _written_messages(text: str) -> list[dict] | None:
    """The messages that ``text`` spells out; None where it is a question, though it may stand in brackets."""
    start = text.lstrip()[:400]
    if not start.startswith("[") or not re.match(r"\[\s*\{\s*['\"]", start):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and found and all(
            isinstance(turn, dict) and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())
            for turn in found
        ):  # fmt: skip
            return found
        return None
    return None


def _message(message: dict) -> dict:
    said = message.get("role") if message.get("role") is not None else message.get("from")
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        known = "system, user (human), assistant (gpt)"
        what = "no role" if said is None else f"role {str(said)[:40]!r}"
        raise RowError(f"prompt: {what}; turns of {known} are rendered, those of tools are not")
    if message.get("tool_calls") or message.get("function_call"):
        raise RowError("prompt: tool calls are not rendered")
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


def _place_images(messages: list[dict], images: int, column: bool, tell: Callable[[str], object]) -> list[dict]:
    """Give every image one part; text-only contents become plain strings, which every chat template can render."""
    parts = sum(part["type"] == "image" for m in messages if isinstance(m["content"], list) for part in m["content"])
    marks = sum(len(IMAGE_MARKS.findall(text)) for text in texts_of(messages))
    if images and parts + marks == 0:
        user = next(message for message in messages if message["role"] == "user")
        text = user["content"]
        rest = [{"type": "text", "text": text}] if isinstance(text, str) else text
        user["content"] = [{"type": "image"}] * images + rest
    elif images or parts or (column and marks):
        if parts + marks != images:
            both = f" ({parts} as parts, {marks} as marks)" if parts and marks else ""
            raise RowError(f"image: {images} given, {parts + marks} in the prompt{both}")
        for message in messages:
            message["content"] = _marks_as_parts(message["content"])
    elif marks and any(IMAGE_MARK in text for text in texts_of(messages)):
        tell(NO_IMAGE)
    for message in messages:
        content = message["content"]
        if not isinstance(content, str) and all(part["type"] == "text" for part in content):
            message["content"] = "".join(part["text"] for part in content)
    return messages


def _marks_as_parts(content: str | list[dict]) -> str | list[dict]:
    """``content`` with an image part for each mark in its texts; as it is where there is none."""
    if isinstance(content, str):
        if not IMAGE_MARKS.search(content):
            return content
        content = [{"type": "text", "text": content}]
    found: list[dict] = []
    for part in content:
        if part["type"] == "image":
            found.append(part)
            continue
        for i, text in enumerate(IMAGE_MARKS.split(part["text"])):
            found += [{"type": "image"}] * (i > 0) + [{"type": "text", "text": text}] * bool(text)
    return found
