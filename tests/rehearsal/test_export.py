"""The rehearsal of an export: the index is the one that a layout writes, and bytes and host memory are those of real files."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch

from tests.megatron import tiny
from vold_nemo.megatron import tensors

ROOT = Path(__file__).parents[2]


def both(path, folder, tensor, pipeline, expert):
    """On every rank: weights in ``folder/real`` as this layout writes them; rank 0 describes them in ``folder/told``."""
    import torch.distributed as dist

    from vold_nemo.checkpoint import sharded
    from vold_nemo.megatron import parallel
    from vold_nemo.rehearsal import written

    model, arch, layout = tiny.built(path, tensor, pipeline, expert=expert)
    try:
        if layout.rank == 0:
            (folder / "real").mkdir()
            (folder / "told").mkdir()
            written.write_index(arch, layout, model.vocab_size, torch.float32, folder / "told")
        dist.barrier()
        sharded.save_model(model, folder / "real")
    finally:
        parallel.destroy()


def index(folder):
    """{key: (whole shape, {offsets: (sizes, rank that wrote it)})}"""
    from vold_nemo.checkpoint.index import read

    known = read(folder)
    found = {}
    for key, tensor in known.state_dict_metadata.items():
        sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in tensor.chunks}
        found[key] = (tuple(tensor.size), tensor.properties.dtype, sizes)
    files = {(at.fqn, tuple(at.offset)): info.relative_path.split("_")[2] for at, info in known.storage_data.items()
             if at.fqn in found}  # fmt: skip
    return found, files


@pytest.mark.parametrize(
    ("kind", "tied", "layout"),
    [("qwen2", False, (2, 1, 1)), ("qwen3_vl", True, (1, 2, 1)), ("qwen3_moe", False, (1, 1, 2)), ("qwen2", True, (1, 1, 1))],
    ids=str,
)  # fmt: skip
def test_the_index_is_the_one_that_the_layout_writes(kind, tied, layout, tmp_path, gloo):
    tiny.save(kind, tmp_path / "model", tied=tied)
    gloo(2).run(both, tmp_path / "model", tmp_path, *layout)
    real, real_files = index(tmp_path / "real")
    told, told_files = index(tmp_path / "told")
    assert told == real
    if layout == (1, 1, 1):  # two data ranks share out what both hold; of pieces as large as each other either may be the one's
        told_bytes, real_bytes = (_by_rank(told, files) for files in (told_files, real_files))
        assert told_bytes == real_bytes and max(real_bytes.values()) < 0.6 * sum(real_bytes.values())
    elif layout[2] == 1:  # of experts only how many files there are is said right: their ranks are other groups'
        split = {at for at, rank in real_files.items() if rank != "0"}
        assert {at for at, rank in told_files.items() if rank != "0"} >= split or layout[1] > 1


def _by_rank(tensors, files):
    """Elements that each rank wrote."""
    found: dict[str, int] = {}
    for (key, at), rank in files.items():
        found[rank] = found.get(rank, 0) + prod(tensors[key][2][at])
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(account, bytes of the language model, of all tensors) of an export of tiny weights that TP2 wrote, without a GPU."""
    folder = tmp_path_factory.mktemp("rehearsed")
    tiny.save("qwen2_5_vl", folder / "student", tied=False, dtype=torch.bfloat16, vocab_size=4096)
    asked = ["experiment=paper_3b", "objective=grpo", f"student.path={folder}/student", "rehearse.stage=export", "device=cpu",
             "parallel=tp2", f"outputs={folder}"]  # fmt: skip
    done = subprocess.run([sys.executable, str(ROOT / "recipes" / "rehearse.py"), *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    entries = tensors.index(folder / "student")
    language = sum(entry.nbytes for name, entry in entries.items() if "visual" not in name)
    account = json.loads((folder / "paper_3b" / "rehearsal" / "export_rank0_of_1.json").read_text())
    return account, language, sum(entry.nbytes for entry in entries.values()), entries, done.stdout


def test_every_byte_is_read_once_and_written_once(told):
    account, language, whole, *_ = told
    files = account["files"]
    assert files["read"] == 4 and files["read_bytes"] == language  # each rank wrote its share; 4,096 rows need no padding
    assert files["written_bytes"] == whole and files["carried_bytes"] == whole - language


def test_the_peak_is_a_table_and_what_was_read_last_within_the_plan(told):
    account, _, _, entries, said = told
    (planned,) = [row for row in account["phases"] if row["planned_bytes"]]
    assert account["memory"] == "host" and not account["violations"] and "no violation" in said
    assert max(row["peak_bytes"] for row in account["phases"]) == planned["peak_bytes"] <= planned["planned_bytes"]
    assert any("shard_stream.py" in holder["place"] for holder in planned["holders"])
    table = 2 * prod(entries["lm_head.weight"].shape)
    assert {"word embeddings", "layers", "output layer"} <= {row["phase"] for row in account["phases"]}
    assert next(row for row in account["phases"] if row["phase"] == "output layer")["peak_bytes"] >= table
