"""One conversation as both models see it, token by token: where their templates differ is where distillation goes wrong.

Each model renders the messages under its own chat template; the response's ids are the same on both sides.  Rows of equal
ids stand side by side, and the trained span is marked.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vold_nemo.data.templates import render_prompt

HEAD, TAIL = 16, 8  # rows shown of a long run of equal ones
LONGEST = 4_000  # tokens that are aligned: the alignment takes quadratic time at worst
WIDTH = 40
_NO_TEXT = "\ufffd"  # what a tokenizer writes for bytes that are no text


@dataclass(frozen=True)
class View:
    """Ids as one model reads them; the response begins at ``prompt_length``."""

    ids: list[int]
    prompt_length: int
    tokens: list[str]  # the text of each id

    @classmethod
    def of(cls, tokenizer, messages: Sequence[dict[str, Any]], response: Sequence[int], *, thinking: bool = False) -> View:
        prompt = render_prompt(tokenizer, messages, thinking=thinking)
        ids = [*prompt, *map(int, response)]
        return cls(ids, len(prompt), [_text(tokenizer, i) for i in ids])


def _text(tokenizer, token: int) -> str:
    """What ``token`` stands for; bytes (``\\xf0\\x9f``) where it is a piece of a character."""
    text = tokenizer.decode([token])
    if _NO_TEXT in text and (raw := _bytes_of(tokenizer.convert_ids_to_tokens(token))) is not None:
        text = raw.decode("utf-8", "backslashreplace")
    return _visible(text)


def _bytes_of(token: str | None) -> bytes | None:
    """The bytes of a token of a byte-level vocabulary, which writes each byte as one character; None of another's token."""
    letters = _letters()
    return bytes(letters[c] for c in token) if token and all(c in letters for c in token) else None


@functools.cache
def _letters() -> dict[str, int]:
    """GPT-2's alphabet of bytes: those that print in Latin-1 stand for themselves, the others follow from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(0x100) if byte not in own)
    return {chr(byte): byte for byte in own} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def side_by_side(student: View, teacher: View) -> Iterator[str]:
    """Lines of a table: position, id and token on the student's side, then on the teacher's; ``>`` is trained on.

    A row that only one side has leaves the other empty.  The responses are aligned with each other whatever stands before.
    """
    yield f"  {'student':<{WIDTH}} teacher"
    rows = [*_aligned(student, teacher, 0), *_aligned(student, teacher, 1)]
    at = 0
    while at < len(rows):
        end = at
        while end < len(rows) and _plain(rows[end], student) == _plain(rows[at], student) is not None:
            end += 1
        end = max(end, at + 1)
        shown = rows[at:end] if end - at <= HEAD + TAIL + 1 else rows[at : at + HEAD]
        yield from (_line(row, student, teacher) for row in shown)
        if len(shown) < end - at:
            yield f"  ... {end - at - HEAD - TAIL} more, equal on both sides"
            yield from (_line(row, student, teacher) for row in rows[end - TAIL : end])
        at = end


def _aligned(student: View, teacher: View, part: int) -> Iterator[tuple[int | None, int | None]]:
    """Pairs of positions in the prompts (part 0) or the responses (part 1); None where a side has nothing."""
    (a, a_end), (b, b_end) = (((0, v.prompt_length), (v.prompt_length, len(v.ids)))[part] for v in (student, teacher))
    if max(a_end - a, b_end - b) > LONGEST:
        a_end, b_end = min(a_end, a + LONGEST), min(b_end, b + LONGEST)
    matcher = difflib.SequenceMatcher(None, student.ids[a:a_end], teacher.ids[b:b_end], autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(range(a + i, a + i_end), range(b + j, b + j_end), strict=True)
        else:
            yield from ((a + k, None) for k in range(i, i_end))
            yield from ((None, b + k) for k in range(j, j_end))


def _plain(row: tuple[int | None, int | None], student: View) -> bool | None:
    """Whether a row that both sides share is trained; None for a row of one side alone."""
    return row[0] >= student.prompt_length if None not in row else None


def _line(row: tuple[int | None, int | None], student: View, teacher: View) -> str:
    mine, other = row
    trained = mine is not None and mine >= student.prompt_length
    return f"{'>' if trained else ' '} {_cell(student, mine):<{WIDTH}} {_cell(teacher, other)}".rstrip()


def _cell(view: View, position: int | None) -> str:
    if position is None:
        return ""
    text = view.tokens[position]
    return f"{position:>5} {view.ids[position]:>7} {text if len(text) <= 24 else text[:21] + '...'}"
