"""The Triton kernels as machine code for A100, H100 and B200, by Triton's own compiler, which needs no GPU for that.

What it shows: they compile for each architecture, spill nothing, fit into shared memory, and move four numbers at a time
where the vocabulary's width lets them.  How fast they are it does not show.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vold_nemo.megatron.architecture import padded_vocabulary, published

ROOT = Path(__file__).parents[2]
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes of a block, CUDA's programming guide, table of limits
WIDE = 16  # what a multiple of it means to Triton's compiler

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def fetched() -> Path:
    """A folder in the user's cache with the triton that tests/trl uses: 1 GB unpacked, and on no other test's path."""
    lines = (ROOT / "tests/trl/requirements.txt").read_text().splitlines()
    pinned = next(line for line in lines if line.startswith("triton=="))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vold_nemo"
    folder = cache / pinned.replace("==", "_")
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                       "--only-binary", ":all:", "--target", f"{aside}/whole", pinned]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{pinned} could not be fetched: {done.stderr.strip()[-300:]}")
            with contextlib.suppress(OSError):  # another process was first
                Path(aside, "whole").rename(folder)
    return folder


@pytest.fixture(scope="module")
def cubins(tmp_path_factory) -> list[dict]:
    cache = tmp_path_factory.mktemp("triton")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{fetched()}", "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-m", "tests.objective.cubin_job"], env=environment, cwd=ROOT, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def named(one: dict) -> str:
    return f"{one['kernel']} {one['constants']} sm_{one['sm']}{' v unknown' if 'v' not in one['aligned'] else ''}"


def test_all_variants_become_machine_code_for_all_architectures(cubins):
    assert len(cubins) == (4 + 3) * 3 * 2 and all(one["cubin"] > 1000 for one in cubins)
    assert {one["sm"] for one in cubins} == set(SHARED)


def test_nothing_is_spilled_and_shared_memory_is_a_few_bytes(cubins):
    spilled = {named(one): one["stack"] for one in cubins if one["stack"] or one["local_bytes"] or one["local"]}
    # Where the width is no multiple of 16 (below), one variant puts two registers aside on sm_100.
    assert not [name for name in spilled if "v unknown" not in name], spilled
    assert all(size <= 8 for size in spilled.values()), spilled
    assert all(one["shared"] <= 64 <= SHARED[one["sm"]] for one in cubins)
    assert all(one["registers"] * 8 * 32 <= 65536 for one in cubins)  # 8 warps of a program fit a multiprocessor


def test_logits_travel_four_at_a_time_where_their_row_is_a_multiple_of_16(cubins):
    # Of all published models' tables on up to 8 tensor ranks; of others padding promises a multiple of 8 alone.
    tables = {one.vocabulary for one in published().values()}
    assert all(padded_vocabulary([rows], tensor) // tensor % WIDE == 0 for rows in tables for tensor in (1, 2, 4, 8))
    for one in cubins:
        wide = {name: count for name, count in one["moves"].items() if ".v4" in name}
        single = sum(one["moves"].values()) - sum(wide.values())
        if "v" in one["aligned"]:  # every block of logits; numbers of a row (norms, weights, sums) come one by one
            tables = 2 if one["constants"].get("TEACHER") or one["constants"]["DIRECTION"] else 1
            each = 4096 // (8 * 32 * 4)  # moves of a thread for a block
            passes = 2 if one["kernel"] == "_normalise" else 1
            assert wide == {"ld.global.v4.b32": each * tables * passes,
                            "st.global.v4.b32": each * (tables if passes == 2 else 1)}, named(one)  # fmt: skip
            assert single <= 6, named(one)
        else:  # rows begin anywhere: one by one
            assert not wide and single > 18, named(one)
