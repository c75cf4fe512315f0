"""What a set holds, as a run would read it: columns, lengths, forms of keys, duplicates, what would be rejected, examples.

A set whose columns are not the ones that ``fields`` name is shown as far as it can be: which columns there are is what its user
has to know first.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError, DatasetConfig
from vold_nemo.config.sources import local_folder
from vold_nemo.config.tree import value_at
from vold_nemo.data.overlap import normalised, question_key
from vold_nemo.data.overlap import question_text as asked
from vold_nemo.data.prompts import Prompt, Wanted, read_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rendering import BLOCK, Renderer, Room, reach_of
from vold_nemo.data.rows import FIRST_ROWS, columns, read_rows
from vold_nemo.rewards.key_forms import KeyReport, form_of, meets

DEPTH = 4  # of structures, whose insides are columns of their own
# Under which names published sets keep them, the likeliest first.
USUAL = {
    "prompt": ("prompt", "question", "problem", "query", "instruction", "messages", "conversations", "conversation", "input"),
    "answer": ("answer", "final_answer", "ground_truth", "reward_model.ground_truth", "expected_answer", "target", "solution"),
}  # fmt: skip


@dataclass
class Column:
    """A column, or a place in a structure, as ``fields`` names it."""

    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def see(self, value: Any) -> None:
        self.kinds["null" if value is None else _KINDS.get(type(value), type(value).__name__)] += 1
        if value is not None and not self.example:
            self.example = f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)[:200]


_KINDS = {str: "text", int: "integer", float: "number", bool: "true | false", dict: "object", list: "list"}


@dataclass
class Keys:
    """The keys that one verifier reads; ``example``: form -> the first key of it."""

    report: KeyReport
    example: dict[str, str] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[str, int, str, str, str]]:
        """(form, keys, how the verifier rewards an answer equal to it, first key, its row) from the most frequent on."""
        said = {True: "however it is written", None: "letter by letter", False: "never"}
        for form, count in self.report.forms.most_common():
            how = said[meets(self.report.verifier, form, self.example[form])]
            yield form, count, how, self.example[form], self.report.first[form]


@dataclass
class Inspection:
    """What was seen; ``wrong``: why the set cannot be read as it is configured; ``stops``: why a run would stop at it."""

    path: str
    split: str
    verifier: str
    columns: list[Column] = field(default_factory=list)
    looked_at: int = 0  # rows that the columns are of
    usable: int = 0
    lengths: dict[str, list[int]] = field(default_factory=dict)  # what is measured -> sorted lengths
    keys: list[Keys] = field(default_factory=list)
    duplicates: int = 0
    conflicting: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notes: dict[str, int] = field(default_factory=dict)
    images: Counter[int] = field(default_factory=Counter)  # of a row -> rows
    examples: list[Prompt] = field(default_factory=list)
    wrong: ConfigError | None = None
    stops: str = ""

    @property
    def rows(self) -> int:
        return self.usable + sum(self.rejected.values())


def dataset_of(config: Config) -> tuple[str, DatasetConfig]:
    """The configuration's key of the set, and the set.

    Raises:
        ConfigError: that set is not configured.
    """
    options = config.inspect
    if options.data is not None:
        return "inspect.data", options.data
    found = value_at(config, options.set)
    if found is None:
        mend = f"give {options.set}.path or inspect.data.path"
        raise ConfigError("inspect.set", options.set, "a set that is configured", mend)
    return options.set, found


def wanted(config: Config, key: str) -> Wanted:
    """What a run asks of the set at ``key``; one of its own is read as stage 2 reads its prompts."""
    from vold_nemo.rewards.answer_keys import refusal

    traces, verifier, data = key == "data.trace_prompts", config.reward.verifier, config.data
    learned = key in ("data.prompts", "inspect.data")
    return Wanted(
        answers=not traces, responses=traces and config.traces.engine == "dataset", system_prompt=data.system_prompt,
        instruction=data.instruction, refuse=None if traces else refusal(verifier, parse=learned), verifier=verifier,
    )  # fmt: skip


def inspect(config: Config) -> Inspection:
    """Read the set once for its columns and once as a run does.  What would be rejected goes to ``rejected.jsonl``, too.

    Raises:
        ConfigError: nothing there, or a file that cannot be read at all.
    """
    (key, dataset), options = dataset_of(config), config.inspect
    found = Inspection(str(dataset.path), dataset.split, config.reward.verifier)
    found.columns, found.looked_at = _columns(dataset)
    rejected = Rejected(Path(options.path) / "rejected.jsonl", 1.0, key="inspect.path")
    seen = _Seen(found, options.examples)
    admitted = _door(options.tokenizer, config, found, rejected)
    try:
        prompts = read_prompts(dataset, rejected, wanted(config, key))
        while block := list(itertools.islice(prompts, BLOCK)):
            for prompt in admitted(block):
                seen(prompt)
    except ConfigError as error:
        if error.key.startswith("data.*.fields"):
            found.wrong = _mapped(error, key, found.columns)
        elif not rejected.count():
            raise
    found.rejected = sum(rejected.reasons.values(), Counter())
    found.notes = {said: len(names) for notes in rejected.notes.values() for said, names in notes.items()}
    for lengths in found.lengths.values():
        lengths.sort()
    found.keys.sort(key=lambda one: -one.report.keys)
    bad = sum(found.rejected.values())
    if bad > config.data.max_rejected_share * found.rows or (bad and bad == found.rows):
        found.stops = f"{bad:,} of {found.rows:,} rows would be rejected; data.max_rejected_share is " \
                      f"{config.data.max_rejected_share:g}"  # fmt: skip
    return found


class _Seen:
    """Takes usable prompts one by one."""

    def __init__(self, found: Inspection, examples: int):
        self.found, self.wanted = found, examples
        self.keys: dict[str, Keys] = {}
        self.first: dict[bytes, str | None] = {}  # question -> the answer of its first row

    def __call__(self, prompt: Prompt) -> None:
        found, text = self.found, asked(prompt)
        found.usable += 1
        found.images[len(prompt.images)] += 1
        self._measure("prompt, characters", len(text))
        if prompt.answer is not None:
            self._measure("key, characters", len(prompt.answer))
            self._key(prompt, prompt.answer)
        if prompt.response is not None:
            self._measure("response, characters", len(prompt.response))
        if prompt.ids is not None:
            self._measure("prompt, tokens", len(prompt.ids))
        question = question_key(prompt, text)
        if question in self.first:
            before, here = self.first[question], prompt.answer
            found.duplicates += 1
            found.conflicting += before is not None and here is not None and normalised(before) != normalised(here)
        self.first.setdefault(question, prompt.answer)
        if len(found.examples) < self.wanted:
            found.examples.append(prompt)

    def _measure(self, what: str, length: int) -> None:
        self.found.lengths.setdefault(what, []).append(length)

    def _key(self, prompt: Prompt, key: str) -> None:
        verifier = prompt.verifier or self.found.verifier
        if verifier not in self.keys:
            self.keys[verifier] = Keys(KeyReport(verifier))
            self.found.keys.append(self.keys[verifier])
        self.keys[verifier].report.add(prompt.id, key)
        self.keys[verifier].example.setdefault(form_of(key), key)


def _door(
    tokenizer: str | None, config: Config, found: Inspection, rejected: Rejected
) -> Callable[[Sequence[Prompt]], Sequence[Prompt]]:
    """The prompts of a block that the model with this ``tokenizer`` can be asked, with their ids; without one, all."""
    if tokenizer is None:
        return lambda block: block
    from vold_nemo.data.templates import load_tokenizer

    folder = local_folder(tokenizer)
    renderer, positions, image = Renderer(load_tokenizer(folder)), None, None
    if (Path(folder) / "config.json").is_file():
        positions, image = reach_of(folder)
    room = Room(config.rollout.max_tokens, "rollout.max_tokens", positions, folder, image)

    def admitted(block: Sequence[Prompt]) -> Iterator[Prompt]:
        for prompt, ids in zip(block, renderer([prompt.messages for prompt in block]), strict=True):
            reason = ids if isinstance(ids, str) else room.refusal(prompt, ids)
            if reason is None:
                prompt.ids = ids
                yield prompt
            else:
                rejected.add(prompt.row, reason, prompt.messages[-1]["content"], found.path, name=prompt.id)

    return lambda block: list(admitted(block))


def _columns(dataset: DatasetConfig) -> tuple[list[Column], int]:
    """Those of the first rows, in their order."""
    found: dict[str, Column] = {}
    rows = 0
    for _, row, _ in itertools.islice(read_rows(dataset, Rejected(None, 1.0)), 10 * FIRST_ROWS):
        rows += 1
        for name, value in _places(row, "", DEPTH):
            found.setdefault(name, Column(name)).see(value)
    return list(found.values()), rows


def _places(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    """(path as ``fields`` has it, value) of a row and of what is inside its structures; of a list the first two."""
    if name:
        yield name, value
    if depth == 0:
        return
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _places(item, f"{name}.{inner}" if name else str(inner), depth - 1)
    elif isinstance(value, list):
        for number, item in enumerate(value[:2]):
            if isinstance(item, dict | list):
                yield from _places(item, f"{name}[{number}]", depth - 1)


def _mapped(error: ConfigError, key: str, known: Sequence[Column]) -> ConfigError:
    """The error of a column that is not there, under the set's own key, with the likeliest of those that are."""
    name = error.key.rpartition(".")[2]
    places = {column.name: column for column in known}
    like = next((usual for usual in USUAL.get(name, ()) if usual in places), None)
    mend = f"give {key}.fields.{name}={like}" if like is not None else error.mend
    top = [place for place in places if "." not in place and "[" not in place] or columns({})
    return ConfigError(f"{key}.fields.{name}", error.value, f"a column of the set: {', '.join(top[:20])}", mend)


def quantiles(lengths: Sequence[int]) -> tuple[int, int, int, int]:
    """Least, median, 95 % and most of sorted ``lengths``."""
    last = len(lengths) - 1
    return lengths[0], lengths[last // 2], lengths[round(0.95 * last)], lengths[last]
