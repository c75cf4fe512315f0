"""Builds and loads a checkpoint of some 300 MB; prints bytes kept, of the largest tensor, and the peak beyond what is kept.

    python -m tests.megatron.loading_memory FOLDER bf16|fp8
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.host_memory import Peak, elsewhere
from tests.megatron import fp8_jobs, tiny

SHAPE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4,
             head_dim=64, vocab_size=16001)  # fmt: skip


def make(folder: Path) -> None:
    tiny.save("qwen3", folder, tied=False, dtype=torch.bfloat16, **SHAPE)


def main(folder: Path, how: str) -> None:
    elsewhere(make, folder)
    from vold_nemo.megatron import architecture, build, fp8, parallel, tensors, weights

    layout = parallel.initialize(1, 1, seed=1, device="cpu")
    precision = fp8_jobs.held(folder, 1, "blockwise") if how == "fp8" else None
    arch = weights.read(folder)
    rows = architecture.padded_vocabulary([arch.vocabulary], 1)
    with Peak() as memory:
        model = build.build_model(
            arch, layout, padded_vocabulary=rows, dtype=torch.bfloat16, trainable=False, held=precision
        )
        weights.load_hf(model, arch, layout, weights.Files(folder))
    kept = fp8.model_bytes(model)
    largest = max(entry.nbytes for entry in tensors.index(folder).values())
    print(kept, largest, memory.bytes - kept)
    parallel.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
