"""The whole pipeline through the documented script, in its smallest size: what a newcomer runs first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ARMS = {"base", "sft", "sft_grpo", "sft_vold"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo with a space")
    environment = {**os.environ, "SMOKE": "1", "OUTPUTS": str(folder), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[1] / "recipes" / "demo.sh"
    done = subprocess.run(["bash", str(script)], env=environment, cwd=folder, capture_output=True, text=True, timeout=780)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "report.html" in done.stdout
    return folder / "miniature_smoke_tp2"


@pytest.mark.timeout(800)
def test_results_hold_every_arm_on_text_and_images_with_intervals(outputs):
    accuracy = json.loads((outputs / "evaluation/results.json").read_text())["accuracy"]
    assert set(accuracy) == ARMS
    for kinds in accuracy.values():
        for kind in ("text", "image"):
            assert 0 <= kinds[kind]["low"] <= kinds[kind]["value"] <= kinds[kind]["high"] <= 1
            assert kinds[kind]["n"] == 24


def test_report_is_one_file_that_names_every_arm_and_every_difference(outputs):
    page = (outputs / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page
    for words in ("GRPO", "VOLD", "exact reverse KL", "vision tower was first regressed"):
        assert words in page


def test_run_folders_hold_metrics_checkpoints_rollouts_and_the_finished_model(outputs):
    for run, steps in (("sft", 4), ("sft_grpo", 3), ("sft_vold", 3)):
        lines = [json.loads(line) for line in (outputs / run / "metrics.jsonl").read_text().splitlines()]
        first = 1 if run == "sft" else 0  # stage 2 is validated before its first step, too
        assert [line["step"] for line in lines] == list(range(first, steps + 1))
        assert (outputs / run / f"checkpoints/step_{steps}/manifest.json").exists()
        assert (outputs / run / "student.nemo").exists() and (outputs / run / "config.yaml").exists()
    last = lines[-1]
    for name in ("reward_mean", "kl_mean", "kl_min", "masked_rate", "teacher_tokens", "entropy", "clip_rate", "beta"):
        assert isinstance(last[name], int | float), name
    assert set(last["seconds"]) >= {"generate", "reward", "teacher", "train", "sync"}
    assert len((outputs / "sft_vold/rollouts/step_000003.jsonl").read_text().splitlines()) == 8 * 5


def test_exports_load_with_plain_transformers_and_carry_the_vision_tower_byte_for_byte(outputs):
    from safetensors.torch import load_file
    from transformers import Qwen2_5_VLForConditionalGeneration

    base = load_file(outputs.parent / "miniature_smoke_world/base/model.safetensors")
    for run in ("sft", "sft_grpo", "sft_vold"):
        trained = load_file(outputs / run / "hf/model.safetensors")
        assert set(trained) == set(base)
        vision = [name for name in base if name.startswith("visual.")]
        assert vision and all(
            trained[name].numpy().tobytes() == base[name].numpy().tobytes() for name in vision
        )
        _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(outputs / run / "hf", output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
