"""Bad rows: written down with their reason, counted, never lost silently, never fatal below a set share.

One :class:`Rejected` serves one run.  Every loader hands it the rows that it cannot use and then calls
:meth:`Rejected.check` with the number of rows that it read; above ``max_share`` the run stops, because a dataset that
is wrong in more places than that is more likely misunderstood (a wrong field name) than dirty.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError
from vold_nemo.config.writing import writing

KEPT_CHARACTERS = 2_000  # of a rejected row: enough to recognise it, also when the row is a gigabyte


class Rejected:
    """The rejected rows of a run.

    Args:
        path: ``rejected.jsonl``; a file left by an earlier run is replaced.  None = only count (ranks other than 0).
        max_share: largest share of rejected rows that a source may have.
        key: the configuration's name for the folder of ``path``.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(self, path: str | Path | None, max_share: float, *, key: str = "outputs"):
        self.path = Path(path) if path is not None else None
        self.max_share = max_share
        self.reasons: dict[str, Counter[str]] = {}  # source -> reason -> rows
        self.notes: dict[str, dict[str, list[str]]] = {}  # source -> what was done to rows that were kept -> their ids
        self._file = None
        self._full = False
        if self.path is None:
            return
        with writing(key, self.path.parent):  # before the data are read: not an hour later, at the first bad row
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self.path.touch()
            self.path.unlink()

    def begin(self, source: str) -> None:
        """``source`` is read from its first row on: its counts start again."""
        self.reasons.pop(source, None)
        self.notes.pop(source, None)

    def note(self, said: str, name: str, source: str) -> None:
        """Row ``name`` of ``source`` is kept, and ``said`` is true of it; :meth:`tell` counts such rows."""
        self.notes.setdefault(source, {}).setdefault(said, []).append(name)

    def tell(self, source: str) -> None:
        """Warn of what :meth:`note` heard about ``source``; one line for each kind, by the process that writes the file."""
        for said, names in self.notes.get(source, {}).items() if self.path is not None else ():
            print(f"warning: {source}: {said} ({len(names):,} rows, first: {names[0]})", file=sys.stderr)

    def add(
        self, row: int | str | None, reason: str, content: Any, source: str = "", *, bad: bool = True, name: str | None = None
    ) -> None:
        """Record row number ``row`` (from 0) of ``source``; ``content`` is the row as it was read, shortened.

        ``bad`` False: a usable row that is left out on purpose (a duplicate); it is written down and not counted.
        ``name``: the row's own id, if it has one.
        """
        if bad:
            self.reasons.setdefault(source, Counter())[reason] += 1
        if self.path is None:
            return
        # JSON with ASCII escapes can hold lone surrogates and NULs; str() covers bytes and images.
        text = content if isinstance(content, str) else json.dumps(content, default=lambda value: str(value)[:200])
        line = {"source": source, "row": row, **({"id": name} if name is not None else {})}
        line |= {"reason": reason, "content": text[:KEPT_CHARACTERS]}
        try:
            if self._file is None:  # kept open: a large set may have a hundred thousand duplicates
                self._file = self.path.open("a", encoding="ascii", buffering=1)
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:  # counted it is; a run does not end over the list
            if not self._full:
                print(f"warning: {self.path} cannot be written ({error.strerror}): rows are counted only", file=sys.stderr)
            self._full = True

    def count(self, source: str | None = None) -> int:
        """Rejected rows of ``source``; of all sources without one."""
        return sum(sum(c.values()) for name, c in self.reasons.items() if source in (None, name))

    def summary(self, source: str | None = None) -> str:
        """``answer: empty 3, not JSON 1``; empty without rejected rows."""
        total: Counter[str] = Counter()
        for name, counts in self.reasons.items():
            if source in (None, name):
                total.update(counts)
        return ", ".join(f"{reason} {rows}" for reason, rows in total.most_common())

    def check(self, total: int, source: str = "", *, fields: str = "data.*.fields") -> None:
        """Stop if more than ``max_share`` of the ``total`` rows read from ``source`` were rejected, or all of them.

        ``fields``: the configuration's names for the columns of ``source``.

        Raises:
            ConfigError: naming the source, the counts by reason and the file that holds the rows.
        """
        bad = self.count(source)
        if total > 0 and (bad > self.max_share * total or bad == total):
            where = f"; the rows are in {self.path}" if self.path is not None else ""
            raise ConfigError(
                source or "data",
                f"{bad} of {total} rows rejected ({self.summary(source)})",
                f"at most data.max_rejected_share = {self.max_share:g} of the rows",
                f"correct the rows or the field names ({fields}.*), or raise data.max_rejected_share{where}",
            )
