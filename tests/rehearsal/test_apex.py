"""A stand-in of apex: its kernels take what the real ones take, and a step with it differs from one without as it should."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vold_nemo.rehearsal import apex
from vold_nemo.rehearsal.engine import report

ROOT = Path(__file__).parents[2]


def test_the_gradient_of_a_weight_is_one_launch_and_no_memory_of_its_own(monkeypatch):
    told = []
    monkeypatch.setattr(report, "on_kernel", lambda name, *, flops, dtype: told.append((name, flops, dtype)))
    rows, width, out = 6, 4, 3
    given = torch.ones(2, rows // 2, width, dtype=torch.bfloat16), torch.ones(rows, out, dtype=torch.bfloat16)
    assert apex.wgrad_gemm_accum_fp32(*given, torch.zeros(out, width)) is None
    apex.wgrad_gemm_accum_fp16(*given, torch.zeros(out, width, dtype=torch.bfloat16))
    flops = 2 * rows * width * out
    assert told == [(f"wgrad_gemm_accum_{kind}", flops, torch.bfloat16) for kind in ("fp32", "fp16")]


@pytest.mark.parametrize(
    ("gradient", "buffer", "words"),
    [(torch.ones(5, 3), torch.zeros(3, 4), r"\[5, 3\] and \[6, 4\]"), (torch.ones(6, 3), torch.zeros(4, 3), r"into \[4, 3\]"),
     (torch.ones(6, 3), torch.zeros(3, 4, dtype=torch.bfloat16), "into torch.bfloat16"),
     (torch.ones(6, 3, dtype=torch.bfloat16), torch.zeros(3, 4), "bfloat16"),
     (torch.ones(3, 6).t(), torch.zeros(3, 4), "not contiguous")],
    ids=["rows", "buffer", "type-of-buffer", "types", "strides"],
)  # fmt: skip
def test_what_the_kernel_would_misread_is_refused(gradient, buffer, words):
    with pytest.raises(RuntimeError, match=words):
        apex.wgrad_gemm_accum_fp32(torch.ones(6, 4), gradient, buffer)


def rehearsed(folder, *, with_apex: bool) -> dict:
    asked = ["experiment=paper_3b", "rehearse.stage=sft", "rehearse.micro_batches=1", "rehearse.engine=local",
             f"rehearse.apex={str(with_apex).lower()}", f"rehearse.path={folder}"]  # fmt: skip
    done = subprocess.run([sys.executable, str(ROOT / "recipes" / "rehearse.py"), *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


@pytest.mark.long
def test_a_step_with_apex_launches_less_waits_less_and_computes_the_same(tmp_path):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler: a rehearsal compiles 60 lines")
    without, with_ = (rehearsed(tmp_path / str(kind), with_apex=kind) for kind in (False, True))
    assert not without["violations"] and not with_["violations"] and with_["apex"]
    before, after = (next(row for row in one["phases"] if row["phase"] == "train") for one in (without, with_))
    added_up = {name: flops for name, flops in after["flops"].items() if name.startswith("wgrad_gemm_accum_fp32")}
    products = sum(flops for name, flops in before["flops"].items() if name.startswith("mm"))
    assert products == sum(added_up.values()) + sum(flops for name, flops in after["flops"].items() if name.startswith("mm"))
    assert 3 * sum(added_up.values()) == pytest.approx(products, rel=0.05)  # of a layer's products every third is a gradient
    # The peak is a forward pass' end, where no gradient lives; torch's own norm asks for one value a tensor list.
    assert after["launches"] < before["launches"] and after["waits"] < before["waits"]
    assert after["peak_bytes"] == pytest.approx(before["peak_bytes"], abs=64)
