"""What a KL in the rewards and a soft mask do to a group, beside the formula written out."""

import math

import pytest
import torch

from vold_nemo.step import Step, StepOptions, make_plan, select
from vold_nemo.step.select import bounded_k1, penalise, soften

SHARED = torch.tensor([True] * 8 + [False])


def judged(rewards=(1.0, 0.0, 0.0, 0.0)):
    step = Step.of([[1]], [[2, 3], [4, 8, 1], [5, 1], [1]], 4, reward=rewards, engine=[[0.0] * n for n in (2, 3, 2, 1)])
    step["student_shared"] = torch.tensor([0.0, 0.0, -1.0, 0.0, -2.0, -5.0, -0.5, -1.0])
    step["teacher"] = torch.tensor([0.0, 0.0, -2.0, 0.0, -2.5, -1.0, -0.5, -0.5])
    return step


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 0, 1, 1, 1, 1]),
        ({"mask_one_sided": False}, [1] * 8),
        ({"mask_eos": True, "eos_ids": (1,)}, [1, 1, 1, 0, 0, 1, 0, 0]),
    ],
)
def test_tokens_that_may_carry_a_kl(options, expected):
    step = judged()
    select(step, StepOptions(shared=SHARED, **options), 0.1)
    assert step["carries"].int().tolist() == expected


def test_a_soft_mask_weighs_by_the_teachers_perplexity_within_the_known_rows():
    step, options = judged(), StepOptions(shared=SHARED, mask="perplexity")
    select(step, options, 0.1)
    make_plan(step, options)
    before = step["kl_weight"].clone()
    nll, known = -step.sum_by_rollout(step["teacher"]), torch.tensor([False, True, True, False])
    soften(step, nll, known)
    mean = [0, 4.5 / 2, 1.5 / 2]  # over the tokens that carry a KL
    assert step["kl_weight"][1] / before[1] == pytest.approx(math.exp(min(mean[1:]) - mean[1]))
    assert step["kl_weight"][2] == before[2] and step["kl_weight"][3] == before[3]  # the least lost; not this rank's


def test_a_soft_mask_leaves_out_what_has_no_token_to_follow():
    step, known = judged((0.0,) * 4), torch.tensor([True, False, True, True])
    options = StepOptions(shared=SHARED, mask_eos=True, eos_ids=(1,), mask="perplexity", skip=False)
    select(step, options, 0.1)
    make_plan(step, options)
    assert step.sum_by_rollout(step["carries"]).tolist() == [2, 1, 1, 0]  # the last is an end of sequence alone
    before = step["kl_weight"].clone()
    soften(step, torch.tensor([4.0, 9.0, 1.0, 0.0], dtype=torch.float64), known)
    assert step["kl_weight"].tolist() == pytest.approx((before * torch.tensor([math.exp(1 - 2), 1, 1, 1])).tolist())
    soften(step, torch.zeros(4, dtype=torch.float64), torch.tensor([False, False, False, True]))  # nobody to compare
    assert step["kl_weight"].isfinite().all()


@pytest.mark.parametrize("clamp", [None, 1.5])
def test_a_kl_in_the_rewards_moves_every_advantage_of_its_group(clamp):
    options = StepOptions(shared=SHARED, kl_in_rewards=True, clamp=clamp)
    step = judged()
    select(step, options, 0.1)
    plan = make_plan(step, options)
    assert step["trained"].all()
    k1, beyond = bounded_k1(step, options)
    assert beyond.any() == (clamp is not None) and (clamp is None or k1.abs().max() == clamp)
    known = torch.tensor([False, True, True, True])
    penalise(step, step.sum_by_rollout(k1), known, options, factor=0.1 * plan.sampled[0])
    sums = [float(part.sum()) for part in k1.double().split([2, 3, 2, 1])]
    shaped = torch.tensor([1.0] + [-0.1 * 4 * float(step["kl_weight"][row]) * sums[row] for row in (1, 2, 3)]).double()
    expected = (shaped - shaped.mean()) / (shaped.std() + 1e-4)
    torch.testing.assert_close(step["advantage"], expected, rtol=1e-6, atol=1e-9)


def test_a_cut_off_answer_keeps_no_advantage_when_its_group_is_penalised():
    options = StepOptions(shared=SHARED, kl_in_rewards=True, overlong="mask_policy")
    step = judged()
    step["truncated"] = [False, True, False, False]
    select(step, options, 0.1)
    make_plan(step, options)
    penalise(step, torch.ones(4).double(), torch.ones(4, dtype=torch.bool), options, factor=1.0)
    assert step["advantage"][1] == 0 and (step["advantage"][[0, 2, 3]] != 0).all()
