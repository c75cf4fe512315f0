"""Several teachers, and teachers that leave the device: every rollout is scored by its own, bit for bit as if it stayed."""

from dataclasses import replace

import numpy as np
import pytest

from tests.models.stages import REWARDS, SAMPLES, FixedSampler, make_world, vold_steps
from vold_nemo.config import ConfigError, TeacherConfig
from vold_nemo.data.prompts import Prompt, teacher_number

KL = "objective=vold_reverse"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from vold_nemo.miniature.random_models import TINY_TEACHER, write_random_teacher

    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    write_random_teacher(folder / "other", replace(TINY_TEACHER, layers=3, hidden=32), rows=72, seed=9)
    return folder


def test_offload_changes_no_bit_and_leaves_only_the_head(gloo, world):
    stays = gloo(2).run(vold_steps, world, REWARDS, KL, "parallel=pp2")
    for where in ("host", "checkpoint"):
        goes = gloo(2).run(
            vold_steps, world, REWARDS, KL, "parallel=pp2", "teacher.offload=true", f"teacher.offload_to={where}"
        )
        for a, b in zip(stays, goes, strict=True):
            for tensor, value in a["weights"].items():
                np.testing.assert_array_equal(value, b["weights"][tensor])
            assert [m["loss_kl"] for m in a["metrics"]] == [m["loss_kl"] for m in b["metrics"]]
            assert "teacher_moved" not in a["metrics"][0]
            first, second = (m["teacher_moved"] for m in b["metrics"])
            size = a["memory"]["weights"]
            # It went once and comes back each step; what the host keeps never changes and is not copied again.
            assert second["bytes"] == size and first["bytes"] == size * (2 if where == "host" else 1)
            assert 0 < second["seconds"] < 60
            assert a["awake"] == (size, size) and b["awake"] == (0, 0)


def scored_by(*names):
    """A FixedSampler whose prompts name these teachers, by number."""

    class Named(FixedSampler):
        def sample(self, number, *args, **options):
            step, report = super().sample(number, *args, **options)
            step["scorer"] = [names[prompt] for prompt in step["prompt"].tolist()]
            return step, report

    return Named


def named_steps(folder, rewards, numbers, *overrides):
    import tests.models.stages as stages

    plain, stages.FixedSampler = stages.FixedSampler, scored_by(*numbers)
    try:
        return vold_steps(folder, rewards, *overrides)
    finally:
        stages.FixedSampler = plain


def more(world):
    return KL, f"+teachers={{other: {{path: {world}/other, offload: true}}}}", "data.prompts.fields.teacher=teacher"


@pytest.mark.parametrize("layout", ["alone", "dp2", "pp2"])
def test_each_rollout_is_scored_by_its_own_teacher(gloo, world, layout):
    """KL sums of one step: those of prompts 0 and 2 under the first teacher, of 1 and 3 under the second."""
    ranks, overrides = {"alone": (1, []), "dp2": (2, []), "pp2": (2, ["parallel=pp2"])}[layout]
    numbers = (0, 1, 0, 1)
    both = gloo(ranks).run(named_steps, world, REWARDS, numbers, *more(world), "teacher.offload=true", *overrides)[0]
    expected = 0.0
    for number, path in ((0, "teacher"), (1, "other")):
        mine = [r if numbers[i // SAMPLES] == number else 1 for i, r in enumerate(REWARDS)]
        alone = gloo(1).run(vold_steps, world, mine, KL, f"teacher.path={world}/{path}")[0]["metrics"][0]
        expected += alone["loss_kl"]
    found = both["metrics"][0]
    assert found["loss_kl"] == pytest.approx(expected, rel=1e-5)
    step, _ = FixedSampler().sample(0)
    assert found["teacher_tokens"] == int(step.lengths[step["reward"] == 0].sum())


def test_prompts_name_teachers_that_exist():
    teachers = {"maths": TeacherConfig(path="a"), "code": TeacherConfig(path="b")}
    asked = [Prompt("1", [], teacher=name) for name in (None, "maths", "code")]
    assert [teacher_number(prompt, teachers) for prompt in asked] == [0, 1, 2]
    with pytest.raises(ConfigError, match="'law' in prompt 7") as error:
        teacher_number(Prompt("7", [], teacher="law"), teachers)
    assert error.value.allowed == "maths | code"


@pytest.mark.parametrize("rewards", [(1,) * 16, REWARDS], ids=["nothing to score", "beta is off"])
def test_training_beside_an_idle_teacher_is_bit_for_bit_training_without(gloo, world, rewards):
    idle = gloo(1).run(vold_steps, world, rewards, KL, "objective.kl.beta.off_step=0")[0]
    without = gloo(1).run(vold_steps, world, rewards, "objective=grpo")[0]
    assert idle["memory"]["weights"] > 0 and all(m["teacher_tokens"] == 0 for m in idle["metrics"])
    for tensor, value in without["weights"].items():
        np.testing.assert_array_equal(value, idle["weights"][tensor])


def test_teacher_tokens_follow_the_reward_rate(gloo, world):
    lengths = FixedSampler().sample(0)[0].lengths.tolist()
    for right in (0, 4, 12):
        rewards = [1] * right + [0] * (16 - right)
        said = gloo(1).run(vold_steps, world, rewards, KL)[0]["metrics"][0]
        assert said["teacher_tokens"] == sum(lengths[right:])
        assert said["reward_mean"] == right / 16 and said["masked_rate"] == right / 16
