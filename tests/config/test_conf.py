"""Every file in conf/ composes, and bad overrides are refused with a way to mend them."""

import dataclasses
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.compose import CONF, GROUPS, HydraArguments, as_config_error, compose
from vold_nemo.config.help import _comments, help_text
from vold_nemo.planning.validity import Pending, findings, value_at
from vold_nemo.planning.values import BOUNDS, CHOICES

FILES = sorted(file.relative_to(CONF).with_suffix("") for file in CONF.rglob("*.yaml") if file.parent != CONF)
MINIATURES = {Path("student/miniature"), Path("teacher/miniature")}


def refused(*overrides: str) -> ConfigError:
    with pytest.raises(Exception) as caught:  # whatever Hydra raises: the translation is what is tested
        compose(HydraArguments.parse(list(overrides)).overrides)
    (error,) = as_config_error(caught.value, list(overrides))
    return error


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


@pytest.mark.parametrize(
    "override, key, mend",
    [
        ("sft.stps=3", "sft.stps", "did you mean sft.steps?"),
        ("stf.steps=3", "stf", "did you mean sft?"),
        ("+sft.new=3", "sft.new", "--help"),
        ("evaluate.text.pth=x", "evaluate.text.pth", "did you mean evaluate.text.path?"),
        ("sft.steps=many", "sft.steps", "type"),
        ("sft.optimizer.learning_rate=fast", "sft.optimizer.learning_rate", "type"),
        ("parallel.sequence=perhaps", "parallel.sequence", "type"),
        ("sft=3", "sft", "--help"),
        ("student=llava", "student", "llava.yaml"),
        ("experiment=papr_3b", "experiment", "did you mean experiment=paper_3b?"),
        ("studnet=miniature", "studnet", "did you mean student?"),
        ("student.path=???", "student.path", "student.path=..."),
        ("name=${nope}", "name", "nope"),
        ("sft={steps:3", "command line", "quote it"),
        ("teacher=null", "command line", ""),
        ("--multirun", "--multirun", "one process"),
        ("--config-name=other", "--config-name", "--config-dir"),
    ],
)
def test_a_bad_override_names_key_value_allowed_and_mend(override: str, key: str, mend: str):
    error = refused(override)
    assert error.key == key
    assert error.value not in (None, "")
    assert error.allowed
    assert mend in error.mend


def test_a_wrong_option_lists_the_options():
    assert refused("student=llava").allowed .startswith("miniature | qwen2_5_vl_32b | qwen2_5_vl_3b | ")


def test_a_null_section_and_a_map_are_filled_from_the_command_line():
    given = ["evaluate.text.path=a:b/c.jsonl", "evaluate.text.fields.image=pictures", "evaluate.models.mine=folder"]
    config = compose(HydraArguments.parse(given).overrides)
    assert config.evaluate.text.path == "a:b/c.jsonl"
    assert config.evaluate.text.fields.image == "pictures"
    assert config.evaluate.models == {"mine": "folder"}
    several = ["teachers.maths.path=a", "teachers.code.path=b", "teachers.maths.offload=true"]
    teachers = compose(HydraArguments.parse(several).overrides).teachers
    assert {name: (one.path, one.offload) for name, one in teachers.items()} == {"maths": ("a", True), "code": ("b", False)}
    kept = compose(HydraArguments.parse(["experiment=miniature", "evaluate.text.limit=3"]).overrides).evaluate.text
    assert kept.limit == 3 and kept.path.endswith("test_text.jsonl")


def test_an_experiment_of_ones_own_is_found_beside_conf(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [miniature, _self_]\nseed: 7\n")
    config = compose(["experiment=mine"], config_dir=str(tmp_path))
    assert (config.seed, config.name) == (7, "miniature")
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsft: {stpes: 3}\n")
    with pytest.raises(Exception) as caught:
        compose(["experiment=mine"], config_dir=str(tmp_path))
    (error,) = as_config_error(caught.value)
    assert error.key == "sft.stpes" and "sft.steps" in error.mend


def test_a_programming_error_is_not_taken_for_a_configuration_error():
    assert as_config_error(ValueError("a shape is wrong")) == []
    assert as_config_error(ExceptionGroup("several", [ConfigError("a", 1, "2", "b"), RuntimeError("c")])) == []


def _keys(section, prefix=""):
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", _comments(type(section)).get(item.name, "")


def test_the_choices_that_are_checked_are_those_that_the_schema_explains():
    explained = dict(_keys(Config()))
    for key, choices in CHOICES.items():
        words = set(re.findall(r"\w+", explained[key]))
        assert set(choices) <= words, f"{key}: {choices} but config.py says {explained[key]!r}"
    listed = {key for key, comment in explained.items() if re.match(r"(ours: )?\w+( \(.*?\))? \| \w+", comment)}
    assert listed - set(CHOICES) <= {"reward.verifier"}  # its registry checks it


def test_every_bounded_key_exists():
    config = compose(["experiment=miniature"])
    for key in BOUNDS:
        value_at(config, key)


def test_help_explains_every_key():
    text = help_text("sft", "Stage 1.")
    for key, comment in _keys(OmegaConf.to_object(OmegaConf.structured(compose([])))):
        section = key.rpartition(".")[0]
        assert key in text or f"{section}.*" in text, key
        assert comment in text, key
