"""Builds and loads a checkpoint of some 300 MB; prints bytes kept, of the largest tensor, and the peak beyond what is kept.

    python -m tests.megatron.loading_memory FOLDER bf16|fp8

The peak is the growth of the process's own memory (anonymous pages: pages of files that the kernel keeps are not counted).
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from pathlib import Path

import torch

from tests.checkpoint.export_memory import anonymous
from tests.megatron import fp8_jobs, tiny

SHAPE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4,
             head_dim=64, vocab_size=16001)  # fmt: skip


def make(folder: Path) -> None:
    tiny.save("qwen3", folder, tied=False, dtype=torch.bfloat16, **SHAPE)


def main(folder: Path, how: str) -> None:
    # in a process of its own: memory that it freed would be used again here, and the growth not be seen
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(folder,))
    maker.start()
    maker.join()
    from vold_nemo.megatron import architecture, build, fp8, parallel, tensors, weights

    layout = parallel.initialize(1, 1, seed=1, device="cpu")
    precision = fp8_jobs.held(folder, 1, "blockwise") if how == "fp8" else None
    arch = weights.read(folder)
    before, peak, running = anonymous(), 0, True

    def watch():
        nonlocal peak
        while running:
            peak = max(peak, anonymous() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = build.build_model(
        arch, layout, padded_vocabulary=architecture.padded_vocabulary([arch.vocabulary], 1), dtype=torch.bfloat16,
        trainable=False, held=precision,
    )  # fmt: skip
    weights.load_hf(model, arch, layout, folder)
    running = False
    watcher.join()
    kept = fp8.model_bytes(model)
    largest = max(entry.nbytes for entry in tensors.index(folder).values())
    print(kept, largest, peak - kept)
    parallel.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
