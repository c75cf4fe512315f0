"""Findings: everything that is wrong is named at once, and nothing that is right is."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from vold_nemo.config import BetaConfig, Config, ConfigError
from vold_nemo.config.compose import HydraArguments, compose
from vold_nemo.config.launcher import launched_world
from vold_nemo.config.tree import value_at, values
from vold_nemo.megatron.parallel import launch
from vold_nemo.planning.allocation import parameter_count
from vold_nemo.planning.resolved import describe
from vold_nemo.planning.validity import Pending, findings, planned_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    from vold_nemo.miniature.random_models import TINY_TEACHER, write_random_student, write_random_teacher

    folder = tmp_path_factory.mktemp("world")
    write_random_student(folder / "base")  # 2 layers, 4 heads
    write_random_teacher(folder / "teacher", dataclasses.replace(TINY_TEACHER, layers=1))
    return folder


@pytest.fixture
def configured(world, tmp_path_factory):
    """A configuration whose start and traces are there: the base, and an empty file."""
    traces = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    traces.touch()

    def make(*overrides: str) -> Config:
        given = [
            "experiment=miniature", f"miniature.path={world}", f"traces.path={traces}", f"vold.start={world}/base", *overrides
        ]  # fmt: skip
        return compose(HydraArguments.parse(given).overrides)

    return make


def keys(errors: list[ConfigError]) -> set[str]:
    return {error.key for error in errors}


@pytest.mark.parametrize("layout, ranks", [("single", 1), ("dp2", 2), ("tp2", 2), ("tp2_sp", 4), ("tp4", 4)])
def test_possible_layouts_have_no_findings(configured, layout, ranks):
    assert findings(configured(f"parallel={layout}"), "plan", ranks) == []


def test_the_teacher_must_fit_the_layout_too_but_only_where_one_is_loaded(configured):
    (error,) = findings(configured("parallel=pp2"), "vold", 2)
    assert error.key == "parallel.pipeline" and "1 layers" in error.allowed
    assert findings(configured("parallel=pp2", "objective=grpo"), "vold", 2) == []
    assert findings(configured("parallel=pp2"), "sft", 2) == []


@pytest.mark.parametrize(
    "overrides, key",
    [
        (["device=gpu"], "device"),
        (["objective.kl.estimator=k9"], "objective.kl.estimator"),
        (["objective.policy.clip_low=1.5"], "objective.policy.clip_low"),
        (["objective.policy.dual_clip=0.5"], "objective.policy.dual_clip"),
        (["rollout.temperature=0"], "rollout.temperature"),
        (["rollout.samples_per_prompt=1"], "rollout.samples_per_prompt"),
        (["sft.batch=0"], "sft.batch"),
        (["sft.optimizer.warmup_steps=91"], "sft.optimizer.warmup_steps"),
        (["vold.optimizer.min_learning_rate=1"], "vold.optimizer.min_learning_rate"),
        (["vold.updates_per_step=33"], "vold.updates_per_step"),
        (["objective.policy.enabled=false", "objective.kl.enabled=false"], "objective.policy.enabled"),
        (["objective=distillation_only", "objective.kl.estimator=k1_reward"], "objective.kl.estimator"),
        (["objective.kl.reward_placement=before"], "objective.kl.reward_placement"),
        (["objective.kl.reward_horizon=return_to_go"], "objective.kl.reward_horizon"),
        (["objective.kl.estimator=k2", "objective.kl.mask_one_sided=false"], "objective.kl.mask_one_sided"),
        (
            ["objective=vold_reverse", "objective.kl.mask_one_sided=false", "objective.kl.mask=perplexity"],
            "objective.kl.mask_one_sided",
        ),
        (
            [
                "objective.kl.estimator=k1_reward", "objective.kl.reward_placement=before",
                "objective.kl.reward_horizon=return_to_go",
            ],
            "objective.kl.reward_horizon",
        ),
        (["objective.kl.beta.final=0.1"], "objective.kl.beta.final"),
        (["objective.kl.beta.schedule=linear"], "objective.kl.beta.final"),
        (["objective.kl.beta.schedule=exponential", "objective.kl.beta.final=0"], "objective.kl.beta.final"),
        (
            ["objective.kl.beta.schedule=linear", "objective.kl.beta.final=0", "objective.kl.beta.warmup_steps=70"],
            "objective.kl.beta.steps",
        ),
        (["traces.shard=3", "traces.shards=3"], "traces.shard"),
        (["data.max_rejected_share=5"], "data.max_rejected_share"),
        (["teacher.precision=fp8"], "teacher.precision"),  # on a CPU
        (["teacher.precision=fp8", "device=auto", "cluster=a100_80"], "teacher.precision"),
        (["teacher.precision=fp8", "device=auto", "cluster=h100", "teacher.fp8.recipe=mxfp8"], "teacher.fp8.recipe"),
        (["teacher.fp8.backend=emulated"], "teacher.fp8.backend"),
        (["teacher.fp8.recipe=delayed"], "teacher.fp8.recipe"),
        (["sft.max_length=600"], "sft.max_length"),  # of 512 positions
        (["student.path=/nowhere"], "student.path"),
        (["teacher.path=nobody/model"], "teacher.path"),
    ],
)
def test_one_mistake_gives_one_finding_with_its_key(configured, overrides, key):
    errors = findings(configured(*overrides), "plan", 1)
    assert keys(errors) == {key}
    assert all(error.allowed and error.mend for error in errors)


def test_the_objectives_own_checks_refuse_what_the_findings_refuse():
    from vold_nemo.objective.beta import BetaSchedule

    refused = ((0.1, "constant", 0), (None, "linear", 0), (0.0, "exponential", 0), (0.0, "linear", 9))
    for final, schedule, warmup in refused:
        with pytest.raises(ValueError):
            BetaSchedule(BetaConfig(0.5, final, schedule, warmup_steps=warmup), steps=9)


@pytest.mark.parametrize(
    "overrides",
    [["objective.kl.mask=perplexity"], ["objective.kl.estimator=k1_reward", "objective.kl.reward_placement=before"]],
)
def test_what_reads_the_teacher_before_the_weights_is_allowed(configured, overrides):
    assert findings(configured(*overrides), "vold", 1) == []


def test_all_mistakes_are_found_at_once(configured):
    config = configured("parallel.pipeline=4", "sft.batch=0", "objective.kl.mask=most", "vold.updates_per_step=40")
    found = keys(findings(config, "plan", 4))
    assert {"parallel.pipeline", "sft.batch", "objective.kl.mask", "vold.updates_per_step"} <= found


def test_a_number_out_of_bounds_is_the_one_finding_of_every_verb(configured):
    config, count = configured(), 0
    for key, said, value in list(values(config)):
        if said.bound is None:
            continue
        owner, _, name = key.rpartition(".")
        section = value_at(config, owner) if owner else config
        for wrong in (next(number for number in (-1, 0, 1, 2) if not said.bound.holds(number)), math.inf, math.nan):
            setattr(section, name, wrong)
            for verb in ("plan", "report"):
                assert [error.key for error in findings(config, verb, 1)] == [key], (verb, wrong)
        setattr(section, name, value)
        count += 1
    assert count > 150 and findings(config, "plan", 1) == []


def test_each_stage_wants_what_the_one_before_it_leaves(configured, tmp_path):
    (error,) = findings(configured("vold.start=nowhere"), "vold", 1)
    assert isinstance(error, Pending) and error.key == "vold.start" and "sft.py" in error.mend
    (error,) = findings(configured(f"traces.path={tmp_path}/traces.jsonl"), "sft", 1)
    assert isinstance(error, Pending) and error.key == "traces.path" and "generate_traces.py" in error.mend
    assert findings(configured(), "vold", 1) == findings(configured(), "sft", 1) == []


@pytest.mark.parametrize(
    "override, key", [("name=''", "name"), ("name=../x", "name"), ("sft.run=/x", "sft.run"), ("vold.run=a/../b", "vold.run")]
)
def test_a_run_stays_below_outputs(configured, override, key):
    assert key in keys(findings(configured(override), "report", 1))


def test_a_verb_that_trains_nothing_needs_no_checkpoint(configured):
    assert findings(configured("student.path=/nowhere", "parallel.tensor=64"), "report", 1) == []


def test_a_missing_miniature_is_made_and_not_downloaded(configured, tmp_path):
    (error,) = findings(configured(f"miniature.path={tmp_path}"), "sft", 1)
    assert "prepare_miniature" in error.mend


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"},  # inside a batch script, outside a step
        {
            "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[1-2]",
            "SLURM_JOB_ID": "5", "SLURM_LOCALID": "3",
        },
    ],
)  # fmt: skip
def test_the_world_is_read_as_the_process_groups_will_read_it(monkeypatch, environment):
    import os

    for name in [name for name in os.environ if name.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (launched_world() or 1) == launch().world


def test_a_plan_made_by_hand_supposes_one_model_copy(configured, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert planned_world(configured("parallel=tp2pp2"), "plan") == 4
    assert planned_world(dataclasses.replace(configured("parallel=tp2pp2"), dry_run=False), "sft") == 1


@pytest.mark.parametrize("model", ["base", "teacher"])
def test_parameters_are_those_in_the_checkpoint(world, model):
    from safetensors import safe_open

    from vold_nemo.megatron import architecture

    with safe_open(world / model / "model.safetensors", framework="np") as file:
        count = sum(
            file.get_tensor(name).size for name in file.keys() if "visual" not in name  # noqa: SIM118
        )
    assert parameter_count(architecture.read(world / model)) == count


def test_the_plan_counts_micro_batches_and_dummies(configured):
    text = describe(configured("sft.batch=48", "sft.micro_batch=32", "parallel=dp2"), "sft")
    assert "2 micro-batches of 32 on each of 1 data-parallel ranks" in text


def test_the_plan_of_grpo_has_no_teacher(configured):
    assert "teacher  none" in describe(configured("objective=grpo"), "vold")
    assert "mask reward" in describe(configured(), "vold")


def test_a_config_that_is_not_json_is_a_finding(configured, tmp_path):
    (tmp_path / "config.json").write_text("{")
    (error,) = findings(configured(f"student.path={tmp_path}"), "sft", 1)
    assert error.key.startswith("student.path")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (error,) = findings(configured(f"student.path={tmp_path}"), "sft", 1)
    assert error.value == "llama" and "qwen2_5_vl" in error.allowed


def test_a_push_without_a_token_waits_in_a_dry_run_and_stops_a_run(configured, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (found,) = findings(configured("export.push=me/mine"), "export_hf")
    assert found.key == "HF_TOKEN" and isinstance(found, Pending) and not findings(configured("export.push=me/mine"), "sft")
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    assert not findings(configured("export.push=me/mine"), "export_hf")
    (found,) = findings(configured("export.push=mine"), "export_hf")
    assert found.key == "export.push" and not isinstance(found, Pending)
