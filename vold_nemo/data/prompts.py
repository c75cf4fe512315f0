"""Prompts: a row of any dataset becomes chat messages, a true answer and images; or a rejected row with a reason.

A prompt column holds a string or chat messages (``data/messages.py``).  Images come beside it, in a column of their own: a
path, encoded bytes, the ``{bytes, path}`` of ``datasets``, or a list of these (``data/pictures.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError, DatasetConfig, RewardConfig
from vold_nemo.data.messages import RowError, append_text, is_unicode, read_messages, texts_of
from vold_nemo.data.pictures import PictureError, frames, open_picture
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rows import Absent, pick, read_rows
from vold_nemo.rewards.key_text import scalar_text, unwrapped
from vold_nemo.rewards.names import Names


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
    sizes: list[tuple[int, int]] = field(default_factory=list, compare=False)  # width, height of each image, upright
    row: int | None = field(default=None, compare=False)  # its number in the set, from 0
    ids: Any = field(default=None, compare=False, repr=False)  # int32, as the model to be asked reads it (rendering.admit)
    digest: str | None = field(default=None, compare=False)  # of a row as a run began with it, where it may have changed since

    def open_images(self) -> list:
        """The images as RGB ``PIL.Image``, decoded now: a dataset of them would not fit in memory."""
        return [open_picture(image) for image in self.images]


def question_text(prompt: Prompt) -> str:
    """The messages in plain text, a ▢ for each image."""
    parts = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join("▢" if part["type"] == "image" else part["text"] for part in content)
        parts.append(content.strip())
    return "\n".join(parts)


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
        verifier: the configured one's name; keys of the user's own verifiers are not unwrapped.
        listed: ``reward.verifiers``.
    """

    answers: bool = True
    responses: bool = False
    system_prompt: str | None = None
    instruction: str | None = None
    refuse: Callable[[str, str | None], str | None] | None = None
    verifier: str | None = None
    listed: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def names(self) -> Names:
        return Names(RewardConfig(self.verifier or RewardConfig.verifier, verifiers=dict(self.listed)))


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
    absent = _absent(config, wanted)
    for number, row, file in read_rows(config, rejected):
        absent.see(row)
        said: list[str] = []
        try:
            prompt = _prompt(number, row, file, config, wanted, said.append)
            if prompt.id in known:
                raise RowError("id: appears twice")
        except RowError as error:
            rejected.add(number, str(error), row, source, name=_name(row, config))
            continue
        known.add(prompt.id)
        for note in said:
            rejected.note(note, prompt.id, source)
        yield prompt
    absent.missed(absent.open)
    total = len(known) + rejected.count(source)
    if total == 0:
        mend = "an empty dataset: correct the path, the subset or the split"
        raise ConfigError("data path", f"{source}, split {config.split}", "at least one row", mend)
    rejected.tell(source)
    rejected.check(total, source)


def _absent(config: DatasetConfig, wanted: Wanted) -> Absent:
    """What every row must have is missed after the first rows and not after the last; what some rows may lack, at the end."""
    fields = config.fields
    must = {"prompt": fields.prompt, "answer": fields.answer if wanted.answers else None}
    must |= {"response": fields.response if wanted.responses else None}
    may = {key: getattr(fields, key) for key in ("image", "domain", "source", "verifier", "teacher")}
    return Absent("data.*.fields", str(config.path), must, may)


def _prompt(
    number: int, row: Any, file: Path | None, config: DatasetConfig, wanted: Wanted, tell: Callable[[str], object]
) -> Prompt:
    fields = config.fields
    if not isinstance(row, dict | list):
        raise RowError(f"row: {type(row).__name__} instead of an object")
    column = fields.image is not None
    images, sizes = _images(pick(row, fields.image), file, tell) if column else ([], [])
    messages, trace = read_messages(pick(row, fields.prompt), len(images), column=column, tell=tell)
    texts = texts_of(messages)
    if sum(map(len, texts)) > config.max_characters:
        raise RowError(f"prompt: longer than {config.max_characters} characters")
    if not all(map(is_unicode, texts)):
        raise RowError("prompt: not Unicode text (half a surrogate pair)")
    if wanted.system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": wanted.system_prompt})
    if wanted.instruction is not None:
        append_text(messages[-1], f"\n{wanted.instruction}")
    verifier = _label(row, fields.verifier, "verifier") or config.verifier
    answer = _answer(pick(row, fields.answer), wanted, verifier, tell)
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
        sizes=sizes,
        row=number,
    )


def _response(value: Any) -> str:
    if value is None:
        raise RowError("response: missing")
    if not isinstance(value, str):
        raise RowError(f"response: {type(value).__name__} instead of a string")
    if not value.strip():
        raise RowError("response: empty")
    return value


def _name(row: Any, config: DatasetConfig) -> str | None:
    """The id that a bad row brings, if it brings one."""
    try:
        return _label(row, config.fields.id, "id") if isinstance(row, dict | list) else None
    except RowError:
        return None


def _label(row: Any, column: str | None, name: str) -> str | None:
    """A short string column; None if no column is configured or the row leaves it empty."""
    value = pick(row, column) if column is not None else None
    if value is None or value == "":
        return None
    if isinstance(value, str):  # as it is: ids are compared with those of other files
        text: str | None = value
    else:
        try:
            text = scalar_text(value)
        except TypeError as error:
            raise RowError(f"{name}: {error} instead of a string") from None
    if text is not None and not is_unicode(text):
        raise RowError(f"{name}: not Unicode text (half a surrogate pair)")
    return text


def _answer(value: Any, wanted: Wanted, verifier: str | None, tell: Callable[[str], object]) -> str | None:
    try:
        text = scalar_text(value)
    except TypeError as error:
        raise RowError(f"answer: {error} instead of a string or number") from None
    if text is None:
        if wanted.answers:
            raise RowError("answer: missing")
        return None
    if not is_unicode(text):
        raise RowError("answer: not Unicode text (half a surrogate pair)")
    if not wanted.names.is_own(verifier):  # it reads what its set has
        plain = unwrapped(text)
        if plain != text:
            tell("keys were taken out of a box, dollar signs, a tag, a list or the solution that ends with them")
        text = plain
    if not text and wanted.answers:
        raise RowError("answer: empty")
    return text or None


def _images(
    value: Any, file: Path | None, tell: Callable[[str], object]
) -> tuple[list[str | bytes], list[tuple[int, int]]]:
    """Image column of a row, each decoded once, and (width, height) of each; relative paths are beside the data file."""
    found: list[str | bytes] = []
    sizes: list[tuple[int, int]] = []
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(item, dict):  # how `datasets` stores an image
            item = item.get("bytes") or item.get("path")
        if isinstance(item, str):
            try:
                path = Path(item).expanduser()
                item = str(path if path.is_absolute() or file is None else file.parent / path)
            except RuntimeError:  # the home of a user that is not here
                raise RowError("image: file not found") from None
        elif not isinstance(item, bytes):
            raise RowError(f"image: {type(item).__name__} instead of a path or encoded bytes")
        try:
            sizes.append(open_picture(item).size)
        except PictureError as error:
            raise RowError(f"image: {error}") from None
        if frames(item) > 1:
            tell("pictures with several frames are seen as their first")
        found.append(item)
    return found, sizes
