"""The step plan: what reaches the teacher, what is trained on, and what never changes a denominator."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vold_nemo.planning.step_plan import make_step_plan


def plan(rewards, *, group_size=2, lengths=None, mask=True, **changes):
    count = len(rewards)
    lengths = lengths or [5 + i % 3 for i in range(count)]
    groups = [list(range(i, i + group_size)) for i in range(0, count, group_size)]
    advantages = []
    for group in groups:
        mean = sum(rewards[i] for i in group) / len(group)
        advantages += [rewards[i] - mean for i in group]
    options = dict(
        lengths=[n + 4 for n in lengths], response_lengths=lengths, kl_lengths=lengths, advantages=advantages,
        kl_mask=[1.0 - r if mask else 0.0 for r in rewards], policy_average="sequence", kl_average="sequence",
        max_tokens=16, data_ranks=1, micro_batch_tokens=64,
    )  # fmt: skip
    options.update(changes)
    return make_step_plan(groups, **options)


def rows(update, rank=None):
    ranks = update.ranks if rank is None else [update.ranks[rank]]
    return sorted(row for batches in ranks for batch in batches for row in batch.rows)


def test_only_wrong_rollouts_reach_the_teacher():
    p = plan([1, 0, 0, 0, 1, 1])
    assert p.scored == (False, True, True, True, False, False)
    for batch in p.updates[0].ranks[0]:
        assert all(p.scored[row] == batch.scored for row in batch.rows)


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
    skipped, whole = plan(rewards), plan(rewards, skip=False)
    assert skipped.policy_weight == whole.policy_weight and skipped.kl_weight == whole.kl_weight
    assert rows(whole.updates[0]) == list(range(8))


def test_a_rank_with_nothing_to_do_gets_a_dummy():
    p = plan([1, 0, 1, 1], data_ranks=3)
    assert [len(batches) for batches in p.updates[0].ranks] == [2, 1, 1]
    assert p.updates[0].ranks[2][0].rows == () and p.updates[0].ranks[2][0].scored


def test_where_nothing_is_scored_dummies_are_not_either():
    p = plan([1, 0, 1, 1], mask=False, data_ranks=2)
    assert [[batch.scored for batch in batches] for batches in p.updates[0].ranks] == [[False], [False]]


def test_expert_parallel_makes_counts_equal_on_all_ranks():
    p = plan([1, 0, 0, 0, 1, 0, 0, 0], data_ranks=3, expert_parallel=2, micro_batch_tokens=16)
    counts = {(sum(b.scored for b in batches), sum(not b.scored for b in batches)) for batches in p.updates[0].ranks}
    assert len(counts) == 1


def test_updates_share_the_groups_and_normalise_over_their_own():
    p = plan([1, 0] * 4, updates=2, lengths=[4] * 8)
    assert [rows(update) for update in p.updates] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert p.policy_weight == (1 / 16,) * 8


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
    p = plan(rewards, group_size=4, data_ranks=ranks, updates=updates, micro_batch_tokens=limit, pad_multiple=multiple)
    update = p.updates[0]
    assert rows(update) == [i for i, kept in enumerate(p.trained) if kept]
    home = {row: d for d, batches in enumerate(update.ranks) for batch in batches for row in batch.rows}
    for row, rank in home.items():
        assert all(home.get(peer, rank) == rank for peer in range(row - row % 4, row - row % 4 + 4))
    for batches in update.ranks:
        assert batches
        for batch in batches:
            assert batch.length % multiple == 0
            assert len(batch.rows) <= 1 or len(batch.rows) * batch.length <= limit
