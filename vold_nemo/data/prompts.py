"""Prompts: a row of any dataset becomes chat messages, a true answer and images; or a rejected row with a reason.

A prompt column holds a string or a list of chat messages.  Images come beside it, in a column of their own (a path,
encoded bytes, the ``{bytes, path}`` of ``datasets``, or a list of these), and stand where the messages say so: at
``{"type": "image"}`` parts, at ``<image>`` marks in a string, or, if neither is there, before the user's text.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError, DatasetConfig
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rows import columns, pick, read_rows

IMAGE_MARK = "<image>"
FIRST_ROWS = 100  # if a column is in none of so many, its name is wrong
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}


@dataclass
class Prompt:
    """A question.  ``messages`` end with the user's turn; contents are strings, or part lists where images stand."""

    id: str
    messages: list[dict[str, Any]]
    answer: str | None = None
    domain: str | None = None
    source: str | None = None  # where it came from
    verifier: str | None = None  # name in vold_nemo/rewards/registry.py; None = the configured one
    teacher: str | None = None  # name in the configuration's `teachers`; None = `teacher`
    images: list[str | bytes] = field(default_factory=list)  # paths or encoded bytes, in the order of the image parts
    response: str | None = None  # the dataset's own trace, where it was asked for

    def open_images(self) -> list:
        """The images as RGB ``PIL.Image``, decoded now: a dataset of them would not fit in memory."""
        from PIL import Image

        return [
            Image.open(io.BytesIO(image) if isinstance(image, bytes) else image).convert("RGB") for image in self.images
        ]


def question_text(prompt: Prompt) -> str:
    """The messages in plain text, a ▢ for each image."""
    parts = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join("▢" if part["type"] == "image" else part["text"] for part in content)
        parts.append(content.strip())
    return "\n".join(parts)


class RowError(ValueError):
    """Why a row cannot be used; becomes the reason in ``rejected.jsonl``."""


@dataclass(frozen=True)
class Wanted:
    """What a reader of prompts asks for besides the question.

    Attributes:
        answers: whether a row without a usable answer is bad (False for the prompts that the teacher answers).
        responses: whether the row's own trace is read, and a row without one is bad.
        system_prompt: put before messages that bring no system turn of their own.
        instruction: put behind the user's last turn, on a line of its own.
        refuse: why an answer cannot be judged by a verifier (None: the configured one), or None if it can be
            (:func:`vold_nemo.rewards.answer_keys.refusal`).
    """

    answers: bool = True
    responses: bool = False
    system_prompt: str | None = None
    instruction: str | None = None
    refuse: Callable[[str, str | None], str | None] | None = None


def teacher_number(prompt: Prompt, teachers: Mapping[str, Any]) -> int:
    """Whose ``prompt`` is: 0 = the configuration's ``teacher``, else the place in ``teachers``, from 1.

    Raises:
        ConfigError: no teacher of that name.
    """
    if prompt.teacher is None:
        return 0
    if prompt.teacher not in teachers:
        raise ConfigError(
            "data.prompts.fields.teacher", f"{prompt.teacher!r} in prompt {prompt.id}",
            " | ".join(teachers) or "no name: there are no `teachers`",
            f"add teachers.{prompt.teacher}.path=CHECKPOINT, or correct the column",
        )  # fmt: skip
    return 1 + list(teachers).index(prompt.teacher)


def load_prompts(config: DatasetConfig, system_prompt: str | None, rejected: Rejected, **wanted) -> list[Prompt]:
    """All prompts of ``config.path`` in memory, as :func:`read_prompts`; ``wanted``: more attributes of :class:`Wanted`."""
    return list(read_prompts(config, rejected, Wanted(system_prompt=system_prompt, **wanted)))


def read_prompts(config: DatasetConfig, rejected: Rejected, wanted: Wanted) -> Iterator[Prompt]:
    """The usable rows of ``config.path`` one by one; bad rows go to ``rejected``, whose share is checked at the end.

    Raises:
        ConfigError: nothing to read, a mapped column that the set does not have, or more than ``rejected.max_share`` of the
            rows are bad.
    """
    known: set[str] = set()
    source = str(config.path)
    rejected.begin(source)
    absent = _Absent(config, wanted)
    for number, row, file in read_rows(config, rejected):
        absent.see(row)
        try:
            prompt = _prompt(number, row, file, config, wanted)
            if prompt.id in known:
                raise RowError("id: appears twice")
        except RowError as error:
            rejected.add(number, str(error), row, source)
            continue
        known.add(prompt.id)
        yield prompt
    absent.missed(absent.open)
    total = len(known) + rejected.count(source)
    if total == 0:
        mend = "an empty dataset: correct the path, the subset or the split"
        raise ConfigError("data path", f"{source}, split {config.split}", "at least one row", mend)
    rejected.check(total, source)


class _Absent:
    """Finds a mapping that names a column which the set does not have.

    What every row must have is missed after the first rows and not after the last; what some rows may lack, at the end.
    """

    def __init__(self, config: DatasetConfig, wanted: Wanted):
        fields = config.fields
        must = {"prompt": fields.prompt, "answer": fields.answer if wanted.answers else None}
        must |= {"response": fields.response if wanted.responses else None}
        may = {key: getattr(fields, key) for key in ("image", "domain", "source", "verifier", "teacher")}
        self.path, self.rows, self.offered, self.must = str(config.path), 0, [], set(must)
        self.open = {key: name for key, name in {**must, **may}.items() if name is not None}

    def see(self, row: Any) -> None:
        if not self.open or not isinstance(row, dict | list):
            return
        self.offered = self.offered or columns(row)
        self.open = {key: name for key, name in self.open.items() if pick(row, name) is None and name not in row}
        self.rows += 1
        if self.rows == FIRST_ROWS:
            self.missed(self.must)

    def missed(self, keys: Collection[str]) -> None:
        """Raise for the first of ``keys`` whose column no row had."""
        for key, name in self.open.items() if self.rows else ():
            if key not in keys:
                continue
            near = difflib.get_close_matches(name, self.offered, n=1, cutoff=0.5)
            raise ConfigError(
                f"data.*.fields.{key}", f"{name}: in none of {self.rows} rows of {self.path}",
                f"a column of the set: {', '.join(self.offered[:12]) or 'none was found'}",
                f"did you mean {near[0]}?" if near else "name the column, or leave the key out if it is optional",
            )  # fmt: skip


def _prompt(number: int, row: Any, file: Path | None, config: DatasetConfig, wanted: Wanted) -> Prompt:
    fields = config.fields
    if not isinstance(row, dict | list):
        raise RowError(f"row: {type(row).__name__} instead of an object")
    images = _images(pick(row, fields.image), file) if fields.image is not None else []
    messages, trace = _messages(pick(row, fields.prompt), len(images))
    if sum(len(text) for text in _texts(messages)) > config.max_characters:
        raise RowError(f"prompt: longer than {config.max_characters} characters")
    if wanted.system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": wanted.system_prompt})
    if wanted.instruction is not None:
        _append(messages[-1], f"\n{wanted.instruction}")
    verifier = _label(row, fields.verifier, "verifier") or config.verifier
    answer = _answer(pick(row, fields.answer), wanted.answers)
    if answer is not None and wanted.refuse is not None and (reason := wanted.refuse(answer, verifier)):
        raise RowError(f"answer: {reason}")
    return Prompt(
        id=_label(row, fields.id, "id") or str(number),
        messages=messages,
        answer=answer,
        domain=_label(row, fields.domain, "domain"),
        source=_label(row, fields.source, "source"),
        verifier=verifier,
        teacher=_label(row, fields.teacher, "teacher"),
        images=images,
        response=_response(pick(row, fields.response) if fields.response else trace) if wanted.responses else None,
    )


def _append(message: dict[str, Any], text: str) -> None:
    if isinstance(message["content"], str):
        message["content"] += text
    else:
        message["content"].append({"type": "text", "text": text})


def _response(value: Any) -> str:
    if value is None:
        raise RowError("response: missing")
    if not isinstance(value, str):
        raise RowError(f"response: {type(value).__name__} instead of a string")
    if not value.strip():
        raise RowError("response: empty")
    return value


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


def _messages(value: Any, images: int) -> tuple[list[dict], Any]:
    """Chat messages whose image parts number ``images``, ending with the user's turn; and the assistant's turn behind it."""
    if value is None:
        raise RowError("prompt: missing")
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowError(f"prompt: {type(value).__name__} instead of a string or a list of messages")
    messages = [_message(message) for message in value]
    trace = None
    while messages and messages[-1]["role"] == "assistant":  # datasets of traces: the model answers itself
        trace = messages.pop()["content"]
    if not messages or messages[-1]["role"] != "user":
        raise RowError("prompt: does not end with a user turn")
    messages = _place_images(messages, images)
    if not any(text.strip() for text in _texts(messages)) and not images:
        raise RowError("prompt: empty")
    return messages, trace


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
            opened = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)  # reads the header only
        except FileNotFoundError:
            raise RowError("image: file not found") from None
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            raise RowError("image: cannot be read") from None
        try:
            with opened:
                opened.load()  # a file that was cut off has a good header
        except Exception:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
            raise RowError("image: does not decode") from None
        found.append(item)
    return found
