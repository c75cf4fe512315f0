"""Every file in conf/ composes into valid settings, and the paper's are the defaults."""

from pathlib import Path

import pytest

from vold_nemo.config.compose import compose
from vold_nemo.config.places import conf
from vold_nemo.config.translate import GROUPS
from vold_nemo.config.tree import value_at
from vold_nemo.planning.validity import Pending, findings

FILES = sorted(file.relative_to(conf()).with_suffix("") for file in conf().rglob("*.yaml") if file.parent != conf())
MINIATURES = {Path("student/miniature"), Path("teacher/miniature")}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes_into_valid_settings(file: Path):
    group, option = str(file.parent), file.name
    short = ["sft.max_length=128", "rollout.max_tokens=40"] if file in MINIATURES else []  # they have 512 positions
    config = compose([f"{group}={option}", "dry_run=true", *short])
    # no checkpoint lies on this machine, and some experiments wait for a feature (tests/planning/test_plan.py says which)
    assert [error for error in findings(config, "plan") if not isinstance(error, Pending)] == []


def test_every_group_of_the_design_has_files():
    assert {file.parts[0] for file in FILES} == set(GROUPS)


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] in ("objective", "parallel")], ids=str)
def test_a_group_on_the_command_line_wins_over_the_experiments(file: Path):
    chosen = f"{file.parent}={file.name}"
    config, alone = compose(["experiment=miniature", chosen]), compose([chosen])
    if file.parts[0] == "parallel":
        assert config.parallel == alone.parallel
    else:
        for key in ("arm", "policy.enabled", "kl.enabled", "kl.estimator", "kl.mask"):
            assert value_at(config, f"objective.{key}") == value_at(alone, f"objective.{key}")
        assert config.objective.kl.beta.value == 0.5


def test_the_papers_settings_are_the_defaults():
    config = compose(["experiment=paper_3b"])
    assert (config.sft.steps, config.sft.batch, config.sft.max_length) == (4000, 256, 8192)
    assert (config.sft.optimizer.learning_rate, config.sft.optimizer.warmup_steps) == (5e-5, 150)
    assert (config.vold.steps, config.vold.prompts_per_step, config.rollout.samples_per_prompt) == (60, 256, 5)
    assert (config.vold.optimizer.learning_rate, config.vold.optimizer.warmup_steps) == (6e-6, 5)
    assert config.vold.optimizer.weight_decay == config.sft.optimizer.weight_decay == 1e-2
    assert (config.objective.policy.clip_low, config.objective.policy.clip_high) == (0.2, 0.3)
    assert (config.objective.kl.estimator, config.objective.kl.mask) == ("k2", "reward")


def test_the_miniatures_arms_share_a_world_and_a_start_and_differ_in_their_run():
    vold, grpo = compose(["experiment=miniature"]), compose(["experiment=miniature_grpo"])
    assert (vold.vold.start, vold.miniature, vold.sft) == (grpo.vold.start, grpo.miniature, grpo.sft)
    assert (vold.vold.run, grpo.vold.run) == ("miniature/sft_vold", "miniature/sft_grpo")
    assert not grpo.objective.kl.enabled
    assert {"base", "sft", "sft_grpo", "sft_vold"} == set(vold.evaluate.models)
    for arm in (vold, grpo):
        assert arm.evaluate.models[arm.objective.arm] == f"outputs/{arm.vold.run}/hf"
        assert arm.report.runs[arm.objective.arm] == arm.vold.run


def test_the_miniature_discloses_every_setting_that_differs_from_the_paper():
    config, paper = compose(["experiment=miniature"]), compose(["experiment=paper_3b"])
    told = " ".join(config.report.differences)
    for key in ("vold.steps", "vold.prompts_per_step", "sft.steps", "sft.batch", "objective.kl.beta.value", "precision"):
        assert value_at(config, key) != value_at(paper, key)
        assert str(value_at(config, key)) in told, key
    assert "exact reverse KL" in told and config.report.crutches
