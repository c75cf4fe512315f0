"""Targets of the paper: every arm's commands compose, finished runs are reused, the page says whose numbers are whose."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.pages.test_report import results_with
from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.config.tree import spec_of
from vold_nemo.pages.reproduce import paper
from vold_nemo.pages.reproduce.page import write_page
from vold_nemo.pages.reproduce.targets import ARMS, EXPERIMENTS, TARGETS, target, with_experiment
from vold_nemo.pages.reproduce.work import Reproduction


def work_of(outputs: Path, name: str, scale: str = "miniature") -> Reproduction:
    overrides = [f"experiment={EXPERIMENTS[scale]}", f"outputs={outputs}"]
    return Reproduction(compose(overrides), target(name), scale, overrides)


def finish(work: Reproduction, *arms: str, reward: float = 0.5) -> None:
    """What a finished run leaves: an export and its metrics."""
    for name in arms:
        folder = work.checkpoint_of(ARMS[name])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
        rows = [{"step": i, "reward_mean": reward, "validation": {"image_accuracy": 0.3}} for i in range(1, 21)]
        (work.run_of(ARMS[name]) / "metrics.jsonl").parent.mkdir(parents=True, exist_ok=True)
        (work.run_of(ARMS[name]) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("scale", "names"),
    [
        ("miniature", ["figure6"]),
        pytest.param("miniature", list(TARGETS), marks=pytest.mark.long),
        pytest.param("paper", list(TARGETS), marks=pytest.mark.long),
    ],
)
def test_every_step_of_every_arm_composes_to_the_arm_it_makes(tmp_path, scale, names):
    seen: dict[tuple[str, ...], object] = {}
    for name in names:
        work = work_of(tmp_path, name, scale)
        for arm in work.arms:
            steps = work.steps(arm) if arm.name != "base" else []
            for step in steps:
                if step.overrides not in seen:
                    seen[step.overrides] = compose(list(step.overrides))
            made = [seen[step.overrides] for step in steps if step.recipe in ("sft", "vold")]
            if made and not arm.suffix:
                config = made[-1]
                run = config.vold.run if steps[-2].recipe == "vold" else config.sft.run
                assert Path(config.outputs) / run == work.run_of(arm)
                assert seen[steps[-1].overrides].export.run == run
                if arm.after is not None:
                    assert config.vold.start == str(work.checkpoint_of(ARMS[arm.after]))
    grpo = seen[next(o for o in seen if f"objective.arm={'sft_gspo'}" in o)]
    assert grpo.objective.policy.loss == "gspo" and not grpo.objective.kl.enabled


def test_what_an_arm_starts_from_is_made_before_it_and_finished_arms_are_reused(tmp_path):
    work = work_of(tmp_path, "figure4")
    assert [arm.name for arm in work.missing()][:4] == ["sft_5", "sft_5_grpo", "sft_5_vold", "sft_12"]
    finish(work, "sft_5", "sft_5_grpo")
    assert [arm.name for arm in work.missing()][:2] == ["sft_5_vold", "sft_12"]
    work = work_of(tmp_path, "figure5")
    assert [arm.name for arm in work.missing()] == ["sft", "sft_grpo", "sft_vold_unmasked", "sft_vold"]
    script = tmp_path / "missing.sh"
    script.write_text(work.listing())
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_slurm_calls_are_chains_of_their_own_name_that_compose(tmp_path):
    work = work_of(tmp_path, "figure5", "paper")
    files = work.write_slurm(tmp_path / "slurm")
    words = files[-1].read_text().splitlines()[-1].split()
    config = compose([word.strip("'") for word in words[words.index("bash") + 2 :]])
    assert (config.name, config.vold.run) == ("paper_3b_sft_vold", "paper_3b/sft_vold")
    assert config.traces.path == f"{tmp_path}/paper_3b/traces/traces.jsonl"
    for file in files:
        subprocess.run(["bash", "-n", str(file)], check=True)


def test_a_table_stands_beside_the_paper_s_and_says_whose_it_is(tmp_path):
    work = work_of(tmp_path, "table3")
    finish(work, "sft", "sft_grpo", "sft_vold")
    _, results = results_with({"sft": 90, "sft_grpo": 100, "sft_vold": 150})
    Path(work.config.evaluate.path).mkdir(parents=True)
    results.write(Path(work.config.evaluate.path) / "results.json")
    path, found = write_page(work, tmp_path / "out")
    page = path.read_text()
    assert (
        found["ours"]["sft_vold"]["image"]["value"] == 0.75 and found["paper"] == paper.TABLE3 and not found["missing"]
    )
    for text in ("75.0%", "45.0", "28.9", "Theirs: a Qwen2.5-VL-3B", "The paper’s numbers", "Our numbers"):
        assert text in page
    assert "http" not in page


def test_figures_draw_the_runs_that_are_there_and_name_the_others(tmp_path):
    work = work_of(tmp_path, "figure5")
    finish(work, "sft", "sft_grpo", reward=0.4)
    finish(work, "sft_vold", reward=0.6)
    path, found = write_page(work, tmp_path / "out")
    assert found["ours"]["sft_vold"]["value"] == pytest.approx(0.6) and found["missing"] == [
        "sft_vold_unmasked: SFT, then VOLD without the reward mask"
    ]
    assert "Not made yet" in path.read_text() and "56.0%" in path.read_text()
    work = work_of(tmp_path, "figure3")
    assert set(write_page(work, tmp_path / "out")[1]["ours"]) == {"reward_mean", "validation.image_accuracy"}


def test_the_scale_chooses_the_experiment_unless_one_is_named():
    assert with_experiment(["reproduce.scale=paper"]) == ["experiment=paper_3b", "reproduce.scale=paper"]
    assert with_experiment(["experiment=x"]) == ["experiment=x"] and with_experiment([])[0] == "experiment=miniature"
    assert set(spec_of("reproduce.target").choices) == set(TARGETS)
    assert set(spec_of("reproduce.scale").choices) == set(EXPERIMENTS)
    with pytest.raises(ConfigError, match=r"table1 \| table2"):
        target("table4")
