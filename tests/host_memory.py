"""The growth of this process's own memory while something runs: anonymous pages; the kernel's pages of files do not count."""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path


def anonymous() -> int:
    """Bytes of this process's anonymous memory."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


class Peak:
    """``with Peak() as memory:`` and then ``memory.bytes``, the most beyond what there was at the beginning."""

    def __enter__(self) -> Peak:
        self.bytes, self._before, self._running = 0, anonymous(), True
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self.bytes = max(self.bytes, anonymous() - self._before)
            time.sleep(0.001)

    def __exit__(self, kind, error, trace) -> None:
        self._running = False
        self._watcher.join()


def elsewhere(work: Callable[[Path], None], folder: Path) -> None:
    """``work(folder)`` in another process: memory that it freed here would be used again, and the growth not be seen."""
    maker = multiprocessing.get_context("spawn").Process(target=work, args=(folder,))
    maker.start()
    maker.join()
