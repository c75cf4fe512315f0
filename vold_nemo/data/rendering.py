"""The door through which every prompt comes: rendered and tokenised once, when the data are loaded.

What comes out is ids that a model can be asked; what does not is a row of ``rejected.jsonl`` with its id and reason, before
anything is computed.  ``generate_traces``, ``sft``, ``vold``, its validation and ``evaluate`` share it.

A chat template is Jinja and runs in Python; the tokenizer's Rust spreads a block of texts over the cores.  Ids are kept in
``data.cache`` under a hash of the messages, the tokenizer and its template, so that a second run, another rank or another
verb reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vold_nemo.config import ConfigError
from vold_nemo.data.messages import is_unicode
from vold_nemo.data.prompts import Prompt
from vold_nemo.data.rejected import Rejected

FORMAT = 1
BLOCK = 1024  # prompts rendered, then tokenised together
SHOW_FROM = 5_000  # prompts from which a progress bar says what is waited for
CACHE_FROM = 2_000  # fewer are rendered again in less time than a file takes

Messages = Sequence[dict[str, Any]]
Found = list["np.ndarray | str"]


class Renderer:
    """Messages as ids under a tokenizer's chat template, up to where the answer begins; or the reason why not.

    Args:
        thinking: reaches the template as ``enable_thinking`` (Qwen3; other templates ignore it).
    """

    def __init__(self, tokenizer, *, thinking: bool = False):
        self.tokenizer, self.thinking = tokenizer, thinking
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        control = {number: token.content for number, token in added.items() if token.special}
        longest = sorted(control.values(), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest))) if longest else None

    def __call__(self, asked: Sequence[Messages]) -> list[np.ndarray | str]:
        """For each prompt its ids (int32), or why it has none."""
        found: list[np.ndarray | str] = [self._refusal(messages) or "" for messages in asked]
        texts: dict[int, str] = {}
        for i, messages in enumerate(asked):
            if not found[i]:
                try:
                    texts[i] = self.tokenizer.apply_chat_template(
                        list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=self.thinking
                    )
                except Exception as error:  # jinja2's errors, and whatever a template's code meets in a message
                    found[i] = f"prompt: the chat template refuses it ({type(error).__name__}: {str(error)[:120]})"
        for i, ids in zip(texts, self._tokenised(list(texts.values())), strict=True):
            found[i] = ids if isinstance(ids, str) else np.asarray(ids, np.int32) if ids else "prompt: no token"
        return found

    def _tokenised(self, texts: list[str]) -> list[Any]:
        if not texts:
            return []
        try:
            # the template has written the special tokens; quiet about length, which Room looks at
            return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # one text of the block: it alone is refused
            if len(texts) == 1:
                return [f"prompt: the tokenizer refuses it ({type(error).__name__}: {str(error)[:120]})"]
            return [ids for text in texts for ids in self._tokenised([text])]

    def _refusal(self, messages: Messages) -> str | None:
        """Control tokens that somebody wrote: in a prompt they would end a turn, begin another or stand for an image.

        Responses are protected in another way: what a model wrote is read with ``split_special_tokens``, as text.
        """
        for message in messages:
            content = message["content"]
            # parts of text follow each other without a gap: a token may be cut in two by them
            texts = [content] if isinstance(content, str) else "".join(part.get("text") or "\0" for part in content).split("\0")
            for text in texts:
                if not is_unicode(text):
                    return "prompt: not Unicode text (half a surrogate pair)"
                if self._control is not None and (written := self._control.search(text)):
                    return f"prompt: holds the control token {written[0]}"
        return None

    def settings(self) -> dict[str, Any]:
        """All that decides the ids of given messages."""
        tokenizer = self.tokenizer
        whole = f"{tokenizer.backend_tokenizer.to_str()}\0{tokenizer.chat_template}\0{self.thinking}"
        return {"format": FORMAT, "tokenizer": hashlib.sha256(whole.encode()).hexdigest()}


@dataclass(frozen=True)
class Room:
    """What a prompt must fit into.

    Args:
        answer: tokens that the answer may take, and the key of the configuration that says so.
        positions: that the model has (None: not known here), and whose they are.
        image_token: the placeholder's id; None where no images are asked about.
        widening: tokens that images of given sizes add to their placeholders.
    """

    answer: int
    key: str
    positions: int | None = None
    model: str = "the model"
    image_token: int | None = None
    widening: Callable[[Iterable[tuple[int, int]]], int] | None = None

    def refusal(self, prompt: Prompt, ids: np.ndarray) -> str | None:
        """Why the model cannot be asked, or None."""
        if prompt.images and self.image_token is not None:
            count = int((ids == self.image_token).sum())
            if count != len(prompt.images):
                return f"image: {len(prompt.images)} given, {count} placeholders in the rendered prompt"
        length = len(ids) + (self.widening(prompt.sizes) if self.widening is not None and prompt.images else 0)
        if self.positions is not None and length + self.answer > self.positions:
            return f"prompt: with {self.key} = {self.answer} longer than the {self.positions} positions of {self.model}"
        return None


def admit(
    prompts: Sequence[Prompt], renderer: Renderer, room: Room, rejected: Rejected, source: str, *,
    cache: str | Path | None = None, without: Collection[str] = (), writes: bool = True,
) -> list[Prompt]:
    """The prompts that the model can be asked, with their ``ids``; the others go to ``rejected``, whose share is checked.

    Args:
        cache: ``data.cache``; None renders anew.
        without: ids of prompts that stay, with or without ids, since they will not be asked (``data.without``).
        writes: whether this process fills the cache and shows a bar.

    Raises:
        ConfigError: more than ``rejected.max_share`` of the source's rows are bad.
    """
    kept, before = [], rejected.count(source)
    for prompt, found in zip(prompts, rendered(prompts, renderer, cache, writes=writes), strict=True):
        reason = found if isinstance(found, str) else room.refusal(prompt, found)
        if reason is not None and prompt.id not in without:
            place = prompt.id if prompt.row is None else prompt.row
            rejected.add(place, reason, prompt.messages[-1]["content"], source, name=prompt.id)
            continue
        prompt.ids = None if isinstance(found, str) else found
        kept.append(prompt)
    rejected.check(len(prompts) + before, source)
    return kept


def rendered(
    prompts: Sequence[Prompt], renderer: Renderer, cache: str | Path | None = None, *, writes: bool = True
) -> Found:
    """Ids or reasons of all ``prompts``, from the cache where it holds them."""
    file = None
    if cache is not None and len(prompts) >= CACHE_FROM:
        file = Path(cache) / f"prompts-{_name(prompts, renderer)}.npz"
        if (found := _read(file)) is not None:
            return found
    from tqdm import tqdm

    found: Found = []

    quiet = not writes or len(prompts) < SHOW_FROM
    with tqdm(total=len(prompts), desc="prompts", unit="prompt", unit_scale=True, disable=quiet, dynamic_ncols=True) as bar:
        for start in range(0, len(prompts), BLOCK):
            block = prompts[start : start + BLOCK]
            found += renderer([prompt.messages for prompt in block])
            bar.update(len(block))
    if file is not None and writes:
        _write(file, found)
    return found


def _name(prompts: Sequence[Prompt], renderer: Renderer) -> str:
    digest = hashlib.sha256(json.dumps(renderer.settings(), sort_keys=True).encode())
    for prompt in prompts:
        digest.update(json.dumps(prompt.messages).encode())
    return digest.hexdigest()[:24]


def _read(file: Path) -> Found | None:
    """What was rendered before; None where it was not, or the file is not as it was written, which is said."""
    if not file.is_file():
        return None
    try:
        with zipfile.ZipFile(file) as members:  # checksums of all, and that none is packed, before any is read
            if sum(one.file_size for one in members.infolist()) > file.stat().st_size or members.testzip() is not None:
                raise ValueError("checksum differs")
        with np.load(file, allow_pickle=False) as kept:
            ids, ends, reasons = kept["ids"], kept["ends"].tolist(), json.loads(kept["reasons"].tobytes())
            if kept["name"].tobytes().decode() != file.name:
                raise ValueError("it is of other prompts")
    except Exception as error:  # whatever zip, numpy and JSON make of other bytes
        print(f"warning: cache {file} is damaged and is made again: {str(error)[:200]}", file=sys.stderr)
        return None
    found: Found = [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    for place, reason in reasons.items():
        found[int(place)] = reason
    return found


def _write(file: Path, found: Found) -> None:
    """Aside, then renamed; where the folder cannot be written, the next run renders again."""
    reasons = {i: ids for i, ids in enumerate(found) if isinstance(ids, str)}
    arrays = [np.empty(0, np.int32) if isinstance(ids, str) else ids for ids in found]
    aside = file.with_name(f"{file.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as opened:
            np.savez(
                opened, ids=np.concatenate(arrays), ends=np.cumsum([len(ids) for ids in arrays], dtype=np.int64),
                reasons=np.frombuffer(json.dumps(reasons).encode(), np.uint8), name=np.frombuffer(file.name.encode(), np.uint8),
            )  # fmt: skip
        aside.replace(file)
    except OSError as error:
        print(f"warning: cache {file} cannot be written ({error.strerror or error})", file=sys.stderr)
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def reach_of(path: str | Path, revision: str | None = None) -> tuple[int | None, int | None]:
    """``max_position_embeddings`` of a checkpoint's language model, and the id of its image placeholder; None without one.

    Raises:
        ConfigError: a configuration that cannot be read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ConfigError("model path", str(path), "a checkpoint folder with config.json", str(error)[:200]) from error
    image = getattr(config, "image_token_id", None) if hasattr(config, "vision_config") else None
    return getattr(config.get_text_config(), "max_position_embeddings", None), image
