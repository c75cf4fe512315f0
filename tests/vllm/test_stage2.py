"""Stage 2 of the embedded world, whole, with vLLM generating in the training processes: the recipes as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)


def recipe(outputs: Path, verb: str, *overrides: str, ranks: int = 0) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    command = [sys.executable, *launcher, str(ROOT / f"recipes/{verb}.py"), "experiment=miniature_smoke", f"outputs={outputs}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *overrides], env=environment, cwd=outputs, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage2")
    recipe(folder, "prepare_miniature")
    return folder


@pytest.mark.parametrize(("layout", "tensor_parallel"), [("tp2", 1), ("dp2", 2)])
def test_stage_two_runs_on_vllm_under_either_layout(outputs, layout, tensor_parallel):
    """The log-prob probe of every step compares vLLM with Megatron at 1e-3 and stops a run that fails it."""
    name = f"vllm_{layout}"
    recipe(
        outputs, "vold", "rollout=vllm", "rollout.batch=64", f"parallel={layout}", f"name={name}",
        f"rollout.vllm.tensor_parallel={tensor_parallel}", "vold.start=${student.path}", ranks=2,
    )  # fmt: skip
    lines = [json.loads(line) for line in (outputs / name / "sft_vold/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3] and lines[0]["validation"]["image_questions"] > 0
    for line in lines[1:]:
        assert line["sync"]["bytes"] > 1_000_000 and line["sync"]["seconds"] > 0
        assert line["ratio_rollout_vs_train"]["mean"] == pytest.approx(1, abs=1e-3)
    assert (outputs / name / "sft_vold/student.nemo").exists()
