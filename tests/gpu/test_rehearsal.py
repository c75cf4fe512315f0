"""Every item to its last line, without a GPU: `make gpu REHEARSE=1`."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.gpu.facts import ROOT
from tests.gpu.items import CPU, FAKE, ITEMS
from vold_nemo.rehearsal import engine

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
FP8 = {"fp8_linear", "fp8_teacher"}


def rehearsed(tmp_path, *words: str) -> tuple[int, list[dict], str]:
    try:
        engine.cached()
    except RuntimeError as error:
        pytest.skip(str(error))
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler: a rehearsal compiles 60 lines")
    file = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "tests.gpu.acceptance", "--rehearse", "--out", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return done.returncode, lines, done.stdout + done.stderr


def test_every_item_comes_to_its_end_and_none_says_that_it_passed(tmp_path):
    code, lines, said = rehearsed(tmp_path)
    assert code == 0, said
    assert [(line["item"], line["rehearsal"]) for line in lines] == [(i.name, kind) for i in ITEMS for kind in i.rehearsed_on]
    assert {line["status"] for line in lines} == {"rehearsed"}, said
    judged = [limit["holds"] for line in lines for limit in line["limits"].values()]
    assert False not in judged and judged.count(True) >= 28  # values on the CPU, bytes on the played GPU; None: neither can say
    at = {(line["item"], line["rehearsal"]): line for line in lines}
    for kind in (CPU, FAKE):
        assert at["bf16_step", kind]["figures"]["down_error_on_cpu"] > 1e-3
    peaks = at["peak", FAKE]  # the stage as an item drives it takes what its rehearsal by the recipe took
    for phase in ("generate", "teacher", "train", "sync"):
        assert peaks["figures"][f"{phase}_peak_bytes"] == pytest.approx(peaks["figures"]["rehearsed"][phase], rel=0.01)


def test_on_a_gpu_below_fp8_those_items_are_skipped_and_the_others_run(tmp_path):
    code, lines, said = rehearsed(tmp_path, "--capability", "8.0", "--only", "import,fp8_linear,fp8_teacher,head_rate")
    assert code == 0, said
    found = {line["item"]: line for line in lines if line["rehearsal"] == FAKE}
    for name, line in found.items():
        assert line["status"] == ("skipped" if name in FP8 else "rehearsed"), said
    assert "compute capability 8.9 and this GPU has 8.0" in found["fp8_linear"]["reason"]
