"""The table of a step: whatever is put in comes out where it belongs, on any number of ranks."""

import math
import pickle
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vold_nemo.megatron.sequences import on_this_rank
from vold_nemo.step import Step, batch_of, collate, table
from vold_nemo.step.plan import PlannedBatch

LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=1, max_size=6)


def step_of(lengths, samples=3, first=100) -> Step:
    """Groups with responses of ``lengths``; every token is one of its own."""
    count, responses = 0, []
    for group in lengths:
        for length in group:
            responses.append(list(range(first + count, first + count + length)))
            count += length
    prompts = [[1 + group] * (1 + group % 4) for group in range(len(lengths))]
    step = Step.of(
        prompts, responses, samples, {"text": [str(r) for r in responses]},
        engine=[[-i / 8 for i in response] for response in responses], reward=[len(r) / 9 for r in responses],
    )  # fmt: skip
    step["prompt"] = [group for group in range(len(lengths)) for _ in range(samples)]
    return step


def same(a: Step, b: Step) -> bool:
    return (
        a.responses.flat.equal(b.responses.flat) and a.responses.offsets.equal(b.responses.offsets)
        and a.prompts.flat.equal(b.prompts.flat) and a.prompts.offsets.equal(b.prompts.offsets)
        and a.labels == b.labels and set(a.columns) == set(b.columns)
        and all(torch.equal(a[name], b[name]) for name in a.columns)
    )  # fmt: skip


@given(LENGTHS)
@settings(max_examples=50, deadline=None)
def test_groups_dealt_out_and_put_together_are_the_step(lengths):
    step = step_of(lengths)
    for world in (1, 2, 3):
        shares = [pickle.loads(pickle.dumps(step.pick_groups(range(rank, len(lengths), world)))) for rank in
                  range(min(world, len(lengths)))]  # fmt: skip
        assert same(Step.interleaved(shares), step)
    order = list(reversed(range(len(lengths))))
    assert same(step.pick_groups(order).pick_groups(order), step)


def gathered(lengths):
    import torch.distributed as dist

    step = step_of(lengths)
    whole = step.pick_groups(range(dist.get_rank(), len(lengths), dist.get_world_size())).gather(dist.get_world_size())
    return same(whole, step)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_gathered_step_is_the_same_on_every_rank(gloo, world):
    assert gloo(world).run(gathered, [[3, 1, 4], [1, 5, 9], [2, 6, 5], [3, 5, 8], [9, 7, 9]]) == [True] * world


@given(LENGTHS, st.sampled_from([1, 2]), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_what_a_micro_batch_takes_and_puts_back_is_its_own_tokens_in_order(lengths, context, extra):
    step = step_of(lengths)
    rows = tuple(range(0, len(step), 2))
    longest = max(int(step.lengths[row]) for row in rows)
    length = -(-longest // (2 * context)) * 2 * context + 2 * context * extra
    whole = batch_of(step, PlannedBatch(rows, length, scored=True))
    step["old"] = math.nan
    for rank in range(context):
        batch = on_this_rank(whole, types.SimpleNamespace(context=context, context_rank=rank))
        taken = step.take(batch, "engine")
        assert torch.where(batch.counts, -batch.targets / 8, 0.0).equal(taken)
        # hidden states in Megatron's order: position t predicts token t + 1 of its row
        s, b = batch.at // len(batch.ids), batch.at % len(batch.ids)
        for n in batch.counts.nonzero().flatten().tolist():
            sequence = step.sequence(int(batch.row[n]))
            assert batch.ids[b[n], s[n]] == sequence[batch.place[n]] and batch.targets[n] == sequence[batch.place[n] + 1]
        assert step.take(batch, "reward").equal(torch.where(batch.counts, step["reward"].float()[batch.row], 0.0))
        step.put(batch, "old", taken * 2)
    mine = torch.isin(step.of_each_token(), torch.tensor(rows))
    assert step["old"][mine].equal(step["engine"][mine] * 2) and bool(step["old"][~mine].isnan().all())


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=10, unique_by=lambda pair: pair[0]))
@settings(max_examples=25, deadline=None)
def test_what_is_put_without_asking_which_count_is_what_is_put(pairs):
    token, counts = (torch.tensor(one) for one in zip(*pairs, strict=True))
    batch = types.SimpleNamespace(token=torch.where(counts, token, 0), counts=counts)
    asked, unasked, values = torch.arange(10.0), torch.arange(10.0), 100.0 + torch.arange(len(counts))
    asked[batch.token[counts]] = values[counts]
    table._put_unasked(unasked, batch, values)
    assert unasked.equal(asked)
    nothing = types.SimpleNamespace(token=torch.zeros(1, dtype=torch.int64), counts=torch.zeros(1, dtype=torch.bool))
    table._put_unasked(torch.zeros(0), nothing, torch.ones(1))


def test_a_micro_batch_with_nothing_to_predict_takes_zeros_and_puts_nothing():
    step, dummy = step_of([[2, 2, 2]]), collate([], rows=(), length=4)
    assert step.take(dummy, "engine").tolist() == [0.0] and not dummy.counts.any()
    step["old"] = 7.0
    step.put(dummy, "old", torch.tensor([3.0]))
    assert step["old"].eq(7.0).all()


@given(LENGTHS)
@settings(max_examples=30, deadline=None)
def test_sums_by_rollout_are_those_of_its_tokens(lengths):
    step = step_of(lengths)
    sums = [float(row.sum()) for row in step["engine"].double().split(step.responses.lengths.tolist())]
    assert step.sum_by_rollout(step["engine"]).tolist() == pytest.approx(sums)


def completed(lengths):
    """Each rank writes its rollouts; rank 1 writes some twice as rank 0 does, a rank without ``mine`` writes nonsense."""
    import torch.distributed as dist

    step, rank = step_of(lengths), dist.get_rank()
    rows = torch.arange(len(step))
    own = rows % 2 == rank % 2
    expected, advantages = step["engine"] * 3, rows.double()
    wrote = own[step.of_each_token()]
    step["kl"] = torch.where(wrote, expected, math.nan)
    step["kl"][0] = math.nan  # nobody formed it
    step["advantage"] = torch.where(own, advantages, -1.0)
    if rank >= 2:
        step["kl"], step["advantage"] = 99.0, 99.0
    step.complete(["kl", "advantage"], own & (rank < 2))
    expected[0] = math.nan
    return torch.equal(step["kl"].nan_to_num(7.0), expected.nan_to_num(7.0)), torch.equal(step["advantage"], advantages)


@pytest.mark.parametrize("world", [2, 4])
def test_columns_known_in_parts_become_whole_everywhere(gloo, world):
    assert gloo(world).run(completed, [[3, 1, 4], [1, 5, 9]]) == [(True, True)] * world


def test_numbers_keep_their_precision_and_ids_take_four_bytes():
    step = Step.of([[1]], [[2, 3]] * 3, 3, reward=[0.1, 1 / 3, 1.0])
    assert step["reward"].tolist() == [0.1, 1 / 3, 1.0]
    assert step.responses.flat.dtype == step.prompts.flat.dtype == torch.int32
    assert step.column("kl").isnan().all() and step.column("truncated").dtype == torch.bool


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda step: step.__setitem__("kll", 0.0), "no column 'kll'; there are engine"),
        (lambda step: step.__setitem__("engine", [1.0]), r"'engine' has \(1,\) values, the step 6"),
        (lambda step: step.__setitem__("reward", torch.zeros(6)), "'reward' has"),
        (lambda step: Step.of([[1]], [[2], [3]], 3), "2 responses to 1 prompts; it must be 3 each"),
        (lambda step: Step.of([[]], [[2]]), "a prompt has no tokens"),
        (lambda step: Step.of([[1]], [[2, 3], [4]], 2, engine=[[0.0], [0.0, 0.0]]), "'engine' has rows of other lengths"),
        (lambda step: Step.of([[1]], [[2], [3]], 2, {"id": ["a"]}), "labels of {'id': 1} values, the step has 2 rollouts"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong(step_of([[1, 2, 3]]))
