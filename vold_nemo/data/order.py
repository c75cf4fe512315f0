"""In which order a stage sees its data: a function of (seed, step), so that the position in the data is the step.

Nothing is stored and nothing depends on the number of ranks: a resumed run, on any layout, goes on with the next batch.
"""

from __future__ import annotations

import random

from vold_nemo.config import ConfigError


class Order:
    """Batches of ``batch`` indices out of ``size``; every epoch is a permutation of its own, drawn from (seed, epoch).

    Batches run across the end of an epoch, so every step has exactly ``batch`` indices and every epoch shows every
    index exactly once.
    """

    def __init__(self, size: int, batch: int, seed: int):
        if size < 1:
            raise ConfigError("data", size, "at least one usable row", "see the rows rejected and dropped above")
        if batch < 1:
            raise ConfigError("batch", batch, "at least 1", "raise the batch size")
        self.size, self.batch, self.seed = size, batch, seed
        self._epoch, self._permutation = -1, []

    def indices(self, step: int) -> list[int]:
        """Indices of the batch of ``step`` (from 0)."""
        return [self._index(position) for position in range(step * self.batch, (step + 1) * self.batch)]

    def epoch(self, step: int) -> float:
        """Epochs seen before ``step``."""
        return step * self.batch / self.size

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            permutation = list(range(self.size))
            # A string seed is hashed with SHA-512: the same on every machine and Python, and no two epochs are related.
            random.Random(f"{self.seed}/{epoch}").shuffle(permutation)
            self._epoch, self._permutation = epoch, permutation
        return self._permutation[offset]
