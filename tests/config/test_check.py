"""Single values: wrong ones are named with their full key, wherever they stand, and nothing right is refused."""

import math

import pytest

from vold_nemo.config import Config, ConfigError, DatasetConfig, FP8Config, OptimizerConfig, TeacherConfig
from vold_nemo.config.check import check, require
from vold_nemo.config.compose import HydraArguments, compose


def found(*overrides: str) -> list[ConfigError]:
    return list(check(compose(HydraArguments.parse(list(overrides)).overrides)))


def test_the_defaults_are_allowed():
    assert found() == []


@pytest.mark.parametrize(
    "override, key, allowed",
    [
        ("seed=-1", "seed", "0 to 2^31 - 1"),
        ("sft.steps=99999999999999999999", "sft.steps", "at most 2^53 in size"),
        ("rollout.stop=[[a]]", "rollout.stop", "a list of texts"),
        ("device=gpu", "device", "auto | cpu | cuda"),
        ("parallel.tensor=0", "parallel.tensor", "1 or more"),
        ("data.prompts.limit=-5", "data.prompts.limit", "1 or more"),
        ("evaluate.text={path: a, limit: -5}", "evaluate.text.limit", "1 or more"),
        ("evaluate.text.limit=-5", "evaluate.text.limit", "1 or more"),
        ("vold.validation.data={path: a, max_characters: 0}", "vold.validation.data.max_characters", "1 or more"),
        ("prepare.against.mine={path: a, limit: 0}", "prepare.against.mine.limit", "1 or more"),
        ("prepare.sets=[prompts,others]", "prepare.sets", "prompts | trace_prompts"),
        ("data.mixture.maths=-0.5", "data.mixture.maths", "0 or more"),
        ("data.mixture.maths=nan", "data.mixture.maths", "a finite number, 0 or more"),
        ("teachers.x={path: a, precision: int8}", "teachers.x.precision", "auto | fp32 | bf16 | fp8"),
        ("teachers.x={path: a, fp8: {max_drift: -1}}", "teachers.x.fp8.max_drift", "above 0"),
        ("sft.optimizer.beta1=nan", "sft.optimizer.beta1", "a finite number, 0 to 1, 1 excluded"),
        ("vold.optimizer.clip_grad=inf", "vold.optimizer.clip_grad", "a finite number, 0 or more"),
        ("objective.policy.std_correction=2", "objective.policy.std_correction", "0 (divide by n) | 1 (divide by n-1)"),
    ],
)
def test_a_wrong_value_is_named_where_it_stands(override, key, allowed):
    given = [override] if override != "evaluate.text.limit=-5" else ["evaluate.text.path=a", override]
    (error,) = found(*given)
    assert (error.key, error.allowed) == (key, allowed)
    assert key in error.mend and error.value is not None


@pytest.mark.parametrize("key", ["limits.stuck_minutes", "objective.kl.clamp", "cluster.memory_gib", "evaluate.limit"])
def test_a_null_is_never_out_of_bounds(key):
    assert found(f"{key}=null") == []


def test_a_value_that_others_allow_is_refused_with_the_reason():
    (error,) = found("teacher.fp8.recipe=delayed")
    assert "never update" in error.mend and "blockwise" in error.allowed


@pytest.mark.parametrize(
    "change", [{"schedule": "polynomial"}, {"learning_rate": 0.0}, {"min_learning_rate": -1.0}, {"warmup_steps": -1},
               {"beta2": 1.0}, {"clip_grad": -1.0}, {"max_skipped": 0}, {"epsilon": math.inf}],
)  # fmt: skip
def test_impossible_optimizer_values_are_refused_by_name(change):
    (key,) = change
    with pytest.raises(ConfigError, match=rf"sft\.optimizer\.{key} = "):
        require(OptimizerConfig(**({"learning_rate": 1e-3} | change)), "sft.optimizer.")


def test_all_wrong_values_are_found_at_once():
    config = Config(seed=-1, teachers={"x": TeacherConfig("a", fp8=FP8Config(probe_layers=0))})
    config.evaluate.text = DatasetConfig("a", limit=0)
    assert {error.key for error in check(config)} == {"seed", "teachers.x.fp8.probe_layers", "evaluate.text.limit"}
