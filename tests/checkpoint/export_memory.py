"""Exports a checkpoint of several hundred MB and prints its bytes, the shard limit and the export's peak of host memory.

    python -m tests.checkpoint.export_memory FOLDER

As the recipe does in one process: from sharded weights on disk, a layer at a time.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from tests.host_memory import Peak, elsewhere
from tests.megatron import tiny
from vold_nemo.checkpoint import export, shard_stream, sharded
from vold_nemo.megatron import architecture, build, parallel, tensors

SHARD = 40 * 2**20


def _bytes(entry: tensors.Entry) -> bytes:
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.nbytes)


def make(folder: Path) -> None:
    """The source, and its weights as a run would have saved them."""
    transformers.logging.disable_progress_bar()
    tiny.save("qwen2_5_vl", folder / "source", tied=False, dtype=torch.bfloat16, hidden_size=1024,
              intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=2, vocab_size=4096)
    model, _, _ = tiny.built(folder / "source", 1, 1, dtype=torch.bfloat16)
    (folder / "shards").mkdir()
    sharded.save_model(model, folder / "shards")
    parallel.destroy()


def main(folder: Path) -> None:
    elsewhere(make, folder)
    layout = parallel.initialize(1, 1, seed=1, device="cpu")
    arch = architecture.read(folder / "source")
    build.build_layer(replace(arch, hidden=64, ffn=64), layout, 0, torch.bfloat16)  # megatron-core is imported by now
    with Peak() as memory:
        stream = shard_stream.stream_shards(folder / "shards", arch, layout, torch.bfloat16)
        export.export_hf(stream, folder / "source", folder / "out", SHARD)
    parallel.destroy()
    written, source = tensors.index(folder / "out"), tensors.index(folder / "source")
    for name, entry in source.items():
        assert _bytes(entry) == _bytes(written[name]), name
    total = sum(entry.nbytes for entry in tensors.index(folder / "out").values())
    print(total, SHARD, memory.bytes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
