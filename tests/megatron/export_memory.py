"""Exports a checkpoint of several hundred MB and prints its bytes, the shard limit and the export's peak of host memory.

    python -m tests.megatron.export_memory FOLDER

The tensors of the stream are made one at a time, so that the model itself is not in the way; the peak is the growth of the
process's own memory (anonymous pages: pages of files that the kernel keeps for itself are not the process's to free).
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import threading
import time
from pathlib import Path

import torch
import transformers

from tests.megatron import tiny
from vold_nemo.megatron import architecture, export, tensors, weights
from vold_nemo.megatron.names import hf_names

SHARD = 40 * 2**20


def anonymous() -> int:
    """Bytes of this process's anonymous memory."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def make(folder: Path) -> None:
    transformers.logging.disable_progress_bar()
    tiny.save("qwen2_5_vl", folder / "source", tied=False, dtype=torch.bfloat16, hidden_size=1024,
              intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=2, vocab_size=4096)


def main(folder: Path) -> None:
    # in a process of its own: memory that it freed would be used again here, and the growth not be seen
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(folder,))
    maker.start()
    maker.join()
    arch = architecture.read(folder / "source")
    files = weights._Files(folder / "source")
    stream = ((name, files.slice(name, 0, 0, files.entries[name].shape[0]).clone()) for name in hf_names(arch))
    before, peak, running = anonymous(), 0, True

    def watch():
        nonlocal peak
        while running:
            peak = max(peak, anonymous() - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    export.export_hf(stream, folder / "source", folder / "out", SHARD)
    running = False
    watcher.join()
    total = sum(entry.nbytes for entry in tensors.index(folder / "out").values())
    print(total, SHARD, peak)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
