"""The step plan: what reaches the teacher, what is trained on, and what never changes a denominator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vold_nemo.step import Step, StepOptions, make_plan
from vold_nemo.step.plan import WRITTEN


def planned(rewards, *, group_size=2, lengths=None, mask=True, scorer=None, kl_lengths=None, **changes):
    """The plan of rollouts with centred advantages, and the table that it was written into; prompts have 4 tokens."""
    count = len(rewards)
    lengths = lengths or [5 + i % 3 for i in range(count)]
    step = Step.of([[1] * 4] * (count // group_size), [[2] * length for length in lengths], group_size, reward=rewards)
    step["advantage"] = (step.by_group("reward") - step.by_group("reward").mean(1, keepdim=True)).flatten()
    step["kl_mask"] = 1.0 - step["reward"] if mask else 0.0
    step["carries"] = True
    if scorer is not None:
        step["scorer"] = scorer
    options = StepOptions(torch.ones(8, dtype=torch.bool), **(dict(max_tokens=16, micro_batch_tokens=64) | changes))
    return make_plan(step, options), step


def plan(rewards, **options):
    return planned(rewards, **options)[0]


def rows(update, rank=None):
    ranks = update if rank is None else [update[rank]]
    return sorted(row for batches in ranks for batch in batches for row in batch.rows)


def test_only_wrong_rollouts_reach_the_teacher():
    p, step = planned([1, 0, 0, 0, 1, 1])
    assert step["scored"].tolist() == [False, True, True, True, False, False]
    for batch in p.updates[0][0]:
        assert all(step["scored"][row] == batch.scored for row in batch.rows)


def test_all_right_group_is_not_trained_on_and_all_wrong_group_is():
    p = plan([1, 1, 0, 0, 1, 0])
    assert rows(p.updates[0]) == [2, 3, 4, 5]
    assert p.skipped_groups == 1


def test_without_a_kl_an_all_wrong_group_is_skipped_too():
    p = plan([1, 1, 0, 0, 1, 0], mask=False)
    assert rows(p.updates[0]) == [4, 5]
    assert p.skipped_groups == 2


def test_skipping_leaves_every_weight_as_it_was():
    rewards = [1, 1, 0, 0, 1, 0, 1, 1]
    (_, skipped), (p, whole) = planned(rewards), planned(rewards, skip=False)
    for name in ("policy_weight", "kl_weight"):
        assert torch.equal(skipped[name], whole[name])
    assert rows(p.updates[0]) == list(range(8)) != rows(plan(rewards).updates[0])


def test_a_rank_with_nothing_to_do_gets_a_dummy():
    p = plan([1, 0, 1, 1], data_ranks=3)
    assert [len(batches) for batches in p.updates[0]] == [2, 1, 1]
    assert p.updates[0][2][0].rows == () and p.updates[0][2][0].scored


def test_where_nothing_is_scored_dummies_are_not_either():
    p = plan([1, 0, 1, 1], mask=False, data_ranks=2)
    assert [[batch.scored for batch in batches] for batches in p.updates[0]] == [[False], [False]]


def test_expert_parallel_makes_counts_equal_on_all_ranks():
    p = plan([1, 0, 0, 0, 1, 0, 0, 0], data_ranks=3, expert_parallel=2, micro_batch_tokens=16)
    counts = {(sum(b.scored for b in batches), sum(not b.scored for b in batches)) for batches in p.updates[0]}
    assert len(counts) == 1


def test_updates_share_the_groups_and_normalise_over_their_own():
    p, step = planned([1, 0] * 4, updates=2, lengths=[4] * 8)
    assert [rows(update) for update in p.updates] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert step["policy_weight"].tolist() == [1 / 16] * 8 and p.sampled == (4, 4)


def test_more_updates_than_groups_is_an_error():
    with pytest.raises(ValueError, match="updates = 3"):
        plan([1, 0, 0, 1], updates=3)


@settings(max_examples=150, deadline=None)
@given(
    rewards=st.lists(st.sampled_from([0, 1]), min_size=4, max_size=24).filter(lambda r: len(r) % 4 == 0),
    ranks=st.integers(1, 5), updates=st.integers(1, 1), limit=st.integers(8, 80), multiple=st.sampled_from([1, 4, 16]),
)  # fmt: skip
def test_every_live_rollout_appears_once_in_a_padded_micro_batch_and_groups_stay_whole(
    rewards, ranks, updates, limit, multiple
):
    p, step = planned(rewards, group_size=4, data_ranks=ranks, updates=updates, micro_batch_tokens=limit, pad_multiple=multiple)
    update = p.updates[0]
    assert rows(update) == step["trained"].nonzero().flatten().tolist()
    assert sorted(row for rank in range(ranks) for row in p.rows(rank)) == rows(update)
    home = {row: d for d, batches in enumerate(update) for batch in batches for row in batch.rows}
    for row, rank in home.items():
        assert all(home.get(peer, rank) == rank for peer in range(row - row % 4, row - row % 4 + 4))
    for batches in update:
        assert batches
        for batch in batches:
            assert batch.length % multiple == 0
            assert len(batch.rows) <= 1 or len(batch.rows) * batch.length <= limit


def test_a_micro_batch_is_of_one_teacher_and_all_ranks_join_each():
    scorer = [0] * 6 + [1] * 2 + [0] * 4
    for expert_parallel in (1, 3):
        p = plan(
            [0.0] * 12, lengths=[2] * 12, scorer=scorer, data_ranks=3, expert_parallel=expert_parallel,
            micro_batch_tokens=12, teacher_cost=(1.0, 2.0),
        )  # fmt: skip
        for batches in p.updates[0]:
            assert {batch.teacher for batch in batches} == {0, 1} and all(batch.scored for batch in batches)
            assert [batch.teacher for batch in batches] == sorted(batch.teacher for batch in batches)
            assert all(batch.teacher == scorer[row] for batch in batches for row in batch.rows)
        if expert_parallel > 1:
            assert len({tuple(batch.teacher for batch in batches) for batches in p.updates[0]}) == 1
        assert rows(p.updates[0]) == list(range(12))


def test_a_plan_writes_the_columns_that_it_says_it_writes():
    _, step = planned([1, 0, 0, 1])
    assert set(WRITTEN) <= set(step.columns)


@pytest.mark.parametrize("multiple", [2, 4])
def test_virtual_stages_get_multiples_of_micro_batches_of_each_kind(multiple):
    rewards = [1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1]
    options = dict(data_ranks=2, micro_batch_tokens=24, teacher_cost=(1.0, 1.0), scorer=[0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
    plain, p = plan(rewards, **options), plan(rewards, micro_batch_multiple=multiple, **options)
    for before, update in zip(plain.updates, p.updates, strict=True):
        for was, batches in zip(before, update, strict=True):
            kinds = [(batch.scored, batch.teacher) for batch in batches]
            assert all(kinds.count(kind) % multiple == 0 for kind in kinds)
            assert [batch for batch in batches if batch.rows] == [batch for batch in was if batch.rows]
    real = sum(bool(batch.rows) for ranks in plain.updates for batches in ranks for batch in batches)
    assert p.micro_batches["real"] == plain.micro_batches["real"] == real
    assert p.micro_batches["dummies"] > plain.micro_batches["dummies"]
