"""Text of a file or a name, made fit to be shown: in a terminal, a log, a page.

:func:`harmless` is the one function for it.  Everything that a recipe prints goes through it (:func:`guard`), so no message has
to know which of its parts came from somewhere else; what draws with escape sequences of its own (a page for the terminal)
hands it the parts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

_BIDI = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]  # turn the order of what is read
_INVISIBLE: dict[int, str] = dict.fromkeys([*_BIDI, *range(0x80, 0xA0), 0x2028, 0x2029], "\N{REPLACEMENT CHARACTER}")
_INVISIBLE |= {code: chr(0x2400 + code) for code in range(0x20) if code not in (9, 10)} | {0x7F: "␡"}


def harmless(text: str) -> str:
    """``text`` with what a terminal would obey made visible: ESC is ``␛``, a lone surrogate ``?``.

    Kept are tab, newline and all that is merely drawn.  Of what comes out every character can be written in UTF-8.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_INVISIBLE).encode("utf-8", "replace").decode()


def harmless_in(value: Any) -> Any:
    """The same of every text, names of keys included, in what a JSON file holds."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {harmless_in(key): harmless_in(inner) for key, inner in value.items()}
    return [harmless_in(inner) for inner in value] if isinstance(value, list | tuple) else value


class Guarded:
    """A stream whose texts are :func:`harmless`; all else is the stream's own.

    ``bars``: a text may begin with returns to the line's begin, and a line of blanks end with one: so progress bars are drawn.
    """

    def __init__(self, stream: TextIO, bars: bool = False):
        self.stream, self.bars = stream, bars
        if hasattr(stream, "reconfigure"):  # a terminal that is not UTF-8 lacks the signs above
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        begin, end = "", ""
        if self.bars:
            rest = text.lstrip("\r")
            begin, text = "\r" * (len(text) - len(rest)), rest
            if text.endswith("\r") and text.isspace() and text.rstrip("\r").strip(" ") == "":
                text, end = text[:-1], "\r"
        self.stream.write(begin + harmless(text) + end)
        return len(begin) + len(text) + len(end)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard() -> None:
    """Put :class:`Guarded` in the place of this process's own output streams; a test's stand-ins are left alone."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = Guarded(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = Guarded(sys.stderr, bars=True)
