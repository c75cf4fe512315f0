"""In which order a stage sees its data: a function of (seed, step), so that the position in the data is the step.

Nothing is stored and nothing depends on the number of ranks: a resumed run, on any layout, goes on with the next batch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Mapping, Sequence

from vold_nemo.config import ConfigError


class Order:
    """Batches of ``batch`` indices out of ``size``; every epoch is a permutation of its own, drawn from (seed, epoch).

    Batches run across the end of an epoch, so every step has exactly ``batch`` indices and every epoch shows every
    index exactly once.

    With ``mixture`` an epoch is still ``size`` indices, of which source s has the share ``mixture[s] / Σ mixture``, in an
    order drawn from (seed, epoch).  Each source walks through its own rows in permutations of its own, from epoch to epoch:
    none of its rows comes a second time before all have come once.  Weight 0 leaves a source out.

    ``without`` leaves indices out and moves no other: where one of them would come, another is drawn from (seed, position),
    of the same source and not of the same batch.  So a run can go on without rows that it began with, and every other row
    comes when it would have come.

    Args:
        sources: [size], where each row comes from; asked for with ``mixture``.
        mixture: source: weight; empty or None = every row once an epoch.
        key: what the mixture is called in the configuration.
        without: indices that are never drawn.

    Raises:
        ConfigError: no rows, or none that is left; a source without a weight or the other way round; weights that are
            negative or all 0.
    """

    def __init__(
        self, size: int, batch: int, seed: int, *, sources: Sequence[str | None] | None = None,
        mixture: Mapping[str, float] | None = None, key: str = "data.mixture",
        without: Collection[int] = (),
    ):  # fmt: skip
        if size < 1:
            raise ConfigError("data", size, "at least one usable row", "see the rows rejected and dropped above")
        if batch < 1:
            raise ConfigError("batch", batch, "at least 1", "raise the batch size")
        self.size, self.batch, self.seed, self.without = size, batch, seed, frozenset(without)
        if len(self.without) >= size:
            raise ConfigError("data.without", f"all {size} rows", "at least one row that stays", "leave fewer out")
        self._epoch, self._indices = -1, []
        self._rows: dict[str, list[int]] = {}
        self._slots: dict[str, int] = {}
        if mixture:
            for row, source in enumerate(sources if sources is not None else [None] * size):
                self._rows.setdefault(str(source), []).append(row)
            self._slots = _shares(size, mixture, self._rows, key)

    def indices(self, step: int) -> list[int]:
        """Indices of the batch of ``step`` (from 0)."""
        first = step * self.batch
        drawn = [self._index(position) for position in range(first, first + self.batch)]
        for place, index in enumerate(drawn):
            if index in self.without:
                drawn[place] = self.instead(f"{first + place}", index, drawn)
        return drawn

    def instead(self, position: str, index: int, taken: Collection[int], more: Collection[int] = ()) -> int:
        """Another row in place of ``index``, of its source if there are several, drawn from (seed, position).

        ``more``: further indices that may not be drawn.  One of ``taken`` comes only where nothing else is left.
        """
        gone, drawn = {*self.without, *more, index}, random.Random(f"{self.seed}/instead/{position}")
        rows: Sequence[int] = next((rows for rows in self._rows.values() if index in rows), range(self.size))
        if all(row in gone for row in rows):
            rows = range(self.size)
        for _ in range(64):  # nearly always the first is one
            if (found := rows[drawn.randrange(len(rows))]) not in gone and found not in taken:
                return found
        left = [row for row in rows if row not in gone]
        if not left:
            raise ConfigError("data.without", f"all {self.size} rows", "at least one row that stays", "leave fewer out")
        return drawn.choice([row for row in left if row not in set(taken)] or left)

    def epoch(self, step: int) -> float:
        """Epochs seen before ``step``."""
        return step * self.batch / self.size

    def name(self, rows: str) -> str:
        """Hash of all that decides which data a step sees; ``rows`` stands for the rows themselves."""
        decides = (rows, self.size, self.batch, self.seed, sorted(self._slots.items()))
        return hashlib.sha256(repr(decides).encode()).hexdigest()[:24]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            # A string seed is hashed with SHA-512: the same on every machine and Python, and no two epochs are related.
            self._indices = self._mixed(epoch) if self._slots else _shuffled(range(self.size), f"{self.seed}/{epoch}")
            self._epoch = epoch
        return self._indices[offset]

    def _mixed(self, epoch: int) -> list[int]:
        found: list[int] = []
        for source, count in self._slots.items():
            rows = self._rows[source]
            first, last = epoch * count, (epoch + 1) * count
            for turn in range(first // len(rows), -(-last // len(rows))):
                whole, start = _shuffled(rows, f"{self.seed}/{source}/{turn}"), turn * len(rows)
                found += whole[max(0, first - start) : last - start]
        return _shuffled(found, f"{self.seed}/{epoch}")


def _shuffled(items: Sequence[int], seed: str) -> list[int]:
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _shares(size: int, mixture: Mapping[str, float], rows: Mapping[str, Sequence[int]], key: str) -> dict[str, int]:
    """``size`` places shared out by weight: whole numbers that add up to it (largest remainders first)."""
    mend = "give every source of the data one weight; 0 leaves it out"
    if mixture.keys() != rows.keys():
        raise ConfigError(key, dict(mixture), f"a weight for each of {', '.join(sorted(rows))}, and for no other", mend)
    total = sum(mixture.values())
    if min(mixture.values()) < 0 or not 0 < total < float("inf"):
        raise ConfigError(key, dict(mixture), "weights of 0 or more, not all of them 0", mend)
    exact = {source: size * weight / total for source, weight in sorted(mixture.items())}
    shares = {source: int(share) for source, share in exact.items()}
    behind = sorted(exact, key=lambda source: (shares[source] - exact[source], source))
    for source in behind[: size - sum(shares.values())]:
        shares[source] += 1
    return {source: share for source, share in shares.items() if share}
