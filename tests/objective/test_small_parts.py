"""Advantages, masks, weights, β: what is decided once per rollout."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vold_nemo.config import BetaConfig
from vold_nemo.objective import (
    BetaSchedule,
    VocabularyShard,
    group_advantages,
    kl_masks,
    kl_sequence_weights,
    kl_token_mask,
    penalised_rewards,
    sequence_weights,
)
from vold_nemo.objective.sequences import Sequences

REWARDS = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("correction", [0, 1])
def test_standardised_advantages_are_torch_std_with_the_papers_delta(correction):
    expected = (REWARDS - REWARDS.mean(1, keepdim=True)) / (REWARDS.std(1, correction=correction, keepdim=True) + 1e-4)
    torch.testing.assert_close(group_advantages(REWARDS, correction=correction), expected)


def test_centred_advantages_are_not_divided():
    torch.testing.assert_close(group_advantages(REWARDS, "centred"), REWARDS - REWARDS.mean(1, keepdim=True))


def test_groups_of_one_or_of_equal_rewards_have_no_advantage_even_without_delta():
    assert group_advantages(torch.tensor([[0.1], [1.0]]), delta=0.0).eq(0).all()
    assert group_advantages(torch.full((2, 7), 0.1), delta=0.0).eq(0).all()


@pytest.mark.parametrize("bad", [{"kind": "z"}, {"correction": 2}, {"delta": -1.0}])
def test_bad_advantage_options_are_refused(bad):
    with pytest.raises(ValueError, match=r"allowed"):
        group_advantages(REWARDS, **bad)


def test_k1_before_standardisation_lowers_the_reward_of_rollouts_far_from_the_teacher():
    k1 = torch.tensor([[2.0, 4.0]])
    torch.testing.assert_close(penalised_rewards(torch.tensor([[1.0, 0.0]]), k1, 0.1), torch.tensor([[0.8, -0.4]]))
    masked = penalised_rewards(torch.tensor([[1.0, 0.0]]), torch.tensor([[torch.nan, 4.0]]), 0.1, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(masked, torch.tensor([[1.0, -0.4]]))


def test_kl_masks_are_the_papers_and_its_variants():
    assert kl_masks(REWARDS, "none").eq(1).all()
    assert kl_masks(REWARDS, "reward").equal(1 - REWARDS)
    assert kl_masks(REWARDS, "all_wrong_group").equal(torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, 5))
    perplexity = torch.tensor([[torch.nan, 2, 4, torch.nan, 8], [3] * 5, [torch.nan] * 5])
    soft = torch.tensor([[0, 1, 0.5, 0, 0.25], [1] * 5, [0] * 5])
    torch.testing.assert_close(kl_masks(REWARDS, "perplexity", perplexity), soft)


def test_a_missing_perplexity_is_an_error_never_a_zero():
    for missing in (None, torch.full((3, 5), torch.nan), torch.zeros(3, 5)):
        with pytest.raises(ValueError, match=r"every wrong rollout"):
            kl_masks(REWARDS, "perplexity", missing)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        kl_masks(REWARDS - 1)
    with pytest.raises(ValueError, match=r"objective.kl.mask"):
        kl_masks(REWARDS, "hard")


def test_tokens_outside_the_shared_ids_and_eos_by_option_carry_no_kl():
    shared = torch.tensor([True, True, False, True])
    targets, response = torch.tensor([0, 2, 3, 1, -100]), torch.tensor([True, True, True, False, True])
    assert kl_token_mask(targets, response, shared).tolist() == [True, False, True, False, False]
    assert kl_token_mask(targets, response, shared, mask_one_sided=False).tolist() == [True, True, True, False, False]
    assert kl_token_mask(targets, response, shared, mask_eos=True, eos_ids=(3,)).tolist() == [True] + [False] * 4


def test_weights_average_over_all_sampled_rollouts():
    counts = [4, 0, 2, 10]
    assert sequence_weights(counts, "token") == [1 / 16] * 4
    assert sequence_weights(counts, "sequence") == [1 / 16, 0.0, 1 / 8, 1 / 40]
    assert sequence_weights(counts, "constant", 20) == [1 / 80] * 4
    assert kl_sequence_weights(counts, [1, 1, 0, 0.5], 0.1, "constant", 20) == pytest.approx([1 / 800, 1 / 800, 0, 1 / 1600])
    assert sequence_weights([0, 0], "token") == [1.0, 1.0]  # no token, nothing to weigh
    for bad in ((counts, "mean", None), (counts, "constant", None), ([-1], "token", None)):
        with pytest.raises(ValueError):
            sequence_weights(*bad)


def beta(**values):
    return BetaConfig(**values)


def test_beta_is_constant_unless_told():
    assert [BetaSchedule(beta(value=0.1)).value(s) for s in (0, 9, 999)] == [0.1] * 3


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_anneals_start_at_value_after_warm_up_end_at_final_and_stay(schedule):
    b = BetaSchedule(beta(value=0.2, final=0.002, schedule=schedule, warmup_steps=4), steps=11)
    values = [b.value(s) for s in range(14)]
    assert values[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    assert values[10:] == pytest.approx([0.002] * 4)
    middle = 0.101 if schedule == "linear" else math.sqrt(0.2 * 0.002)
    assert values[7] == pytest.approx(middle)


def test_beta_switches_off_for_pure_grpo():
    b = BetaSchedule(beta(value=0.2, off_step=3))
    assert [b.value(s) for s in range(5)] == [0.2, 0.2, 0.2, 0, 0]


def test_a_resumed_beta_schedule_says_what_is_no_longer_what_it_was(caplog):
    saved = BetaSchedule(beta(value=0.2, final=0.02, schedule="linear"), steps=11).state_dict()
    BetaSchedule(beta(value=0.2, final=0.02, schedule="linear"), steps=11).load_state_dict(saved)
    assert not caplog.records
    longer = BetaSchedule(beta(value=0.2, final=0.02, schedule="linear", off_step=15), steps=21)
    longer.load_state_dict(saved)
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == ["steps was 11, is 21", "off_step was None, is 15"]
    assert longer.value(20) == 0.0  # the configuration is obeyed


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": "cosine"}, {"value": -1.0}, {"schedule": "linear"}, {"final": 0.1}, {"warmup_steps": -1},
        {"schedule": "exponential", "final": 0.0}, {"schedule": "linear", "final": 0.1, "steps": 3, "warmup_steps": 3},
        {"off_step": -1},
    ],
)  # fmt: skip
def test_schedules_without_a_meaning_are_refused(bad):
    with pytest.raises(ValueError, match=r"objective.kl.beta.*allowed"):
        BetaSchedule(SimpleNamespace(**vars(beta(**bad))), steps=20)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=1, max_size=30))
def test_sequence_sums_and_returns_follow_their_definition(tokens):
    sequence, values = torch.tensor([t[0] for t in tokens]), torch.tensor([t[1] for t in tokens], dtype=torch.float64)
    same = sequence[:, None] == sequence[None, :]
    later = torch.ones_like(same).triu()
    torch.testing.assert_close(Sequences(sequence).sum(values), same.double() @ values)
    torch.testing.assert_close(Sequences(sequence).mean(values), same.double() @ values / same.sum(1))
    torch.testing.assert_close(Sequences(sequence).to_go(values), (same & later).double() @ values)


def test_vocabulary_shards_refuse_masks_that_do_not_fit():
    ids = torch.arange(8) < 6
    with pytest.raises(ValueError, match=r"subset"):
        VocabularyShard(0, 8, ids, torch.ones(8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"bool \[9\]"):
        VocabularyShard(0, 9, ids, ids)
    with pytest.raises(ValueError, match=r"divide by 3"):
        VocabularyShard.of(0, 3, ids)
