"""In a weight sync every rank receives what its engine keeps of transformers' tensors, bit for bit, and no more than that."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.megatron import tiny
from vold_nemo.megatron import architecture, exchange, routes, tensors
from vold_nemo.rollout.shares import share, whole

GROUPS = tiny.SHAPE["num_key_value_heads"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("exchange")
    tiny.save("qwen2_5_vl", root / "untied", tied=False)
    tiny.save("qwen2_5_vl", root / "tied", tied=True)
    tiny.save("qwen2_5_vl", root / "deep", tied=False, num_hidden_layers=4)
    tiny.save("qwen3_moe", root / "experts", tied=False)
    tiny.save("qwen3_vl_moe", root / "packed", tied=False)
    return root


def kept(name, shape, rank, ranks):
    """Of experts an engine would keep a slice along their inner width: columns, where Megatron's ranks hold whole ones."""
    if ".experts." not in name:
        return share(name, shape, rank % ranks, ranks, GROUPS)
    box, width = list(whole(shape)), shape[-1] // ranks
    box[-1] = rank % ranks * width, (rank % ranks + 1) * width
    return tuple(box)


def received(path, tensor, pipeline, expert, ranks, round_bytes, virtual=1):
    """This rank, and what its engine is sent, copied as it comes: in every way that it may travel, twice each."""
    from vold_nemo.megatron import parallel

    model, arch, layout = tiny.built(path, tensor, pipeline, expert=expert, virtual=virtual)

    def keeps(name, shape, rank):
        return kept(name, shape, rank, ranks)

    try:
        with pytest.MonkeyPatch.context() as change:
            change.setitem(exchange.ROUND, "cpu", round_bytes)
            packed = exchange.Exchange(model, arch, layout, keeps)
            ways = [copied(packed)]
            assert not any(move.alone for move in moves(packed.plan))  # as on a GPU
            change.setitem(exchange.LONG, "cpu", 600)  # bytes
            alone = exchange.Exchange(model, arch, layout, keeps)
            if not arch.experts or ranks == 1:  # else engines keep columns of experts: no piece is one stretch
                assert any(move.alone for move in moves(alone.plan))
            ways += [copied(alone), copied(alone)]
            room = {name: torch.full_like(value, torch.nan) for name, value in ways[0]}
            into = exchange.Exchange(model, arch, layout, keeps, room.get)
            for _ in range(2):
                ways.append(copied(into))
                assert all(value is room[name] or (arch.tied and name == "lm_head.weight") for name, value in into.stream())
                for value in room.values():
                    value.fill_(torch.nan)
            room = {name: value.bfloat16() for name, value in room.items()}  # it would have to be cast: no room
            ways.append(copied(exchange.Exchange(model, arch, layout, keeps, room.get)))
        return layout.rank, ways
    finally:
        parallel.destroy()


def copied(found):
    return [(name, value.clone()) for name, value in found.stream()]


def by_way(ranks):
    return [(rank, way, named) for rank, ways in ranks for way, named in enumerate(ways)]


def moves(plan):
    return [move for one in plan.rounds for item in one.items for move in item.moves if move.source != move.target]


@pytest.mark.parametrize(
    ("name", "layout", "ranks", "round_bytes"),
    [
        ("untied", (2, 2, 1), 1, 1 << 20),  # whole tensors, of all four ranks' pieces
        ("untied", (2, 2, 1), 2, 6000),  # slices as the trainer's, of other stages; tables of the vocabulary in parts
        ("tied", (1, 2, 1), 4, 6000),  # slices narrower than the trainer's; heads on two ranks each; 61 rows padded to 64
        ("tied", (4, 1, 1), 2, 1 << 20),  # wider ones, of other ranks than those that hold most of them
        ("experts", (2, 1, 4), 2, 6000),  # experts of a wider group than the tensors'
        pytest.param("packed", (1, 2, 2), 1, 1 << 20, marks=pytest.mark.long),
        ("packed", (2, 1, 2), 2, 1 << 20),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_every_rank_receives_its_engine_s_part_of_the_checkpoint(checkpoints, name, layout, ranks, round_bytes, gloo):
    stored = load_file(checkpoints / name / tensors.SINGLE)
    expected = {key: value for key, value in stored.items() if "visual" not in key}
    for rank, way, named in by_way(gloo(4).run(received, checkpoints / name, *layout, ranks, round_bytes)):
        found = dict(named)
        assert len(named) == len(found) and found.keys() == expected.keys()
        for key, value in expected.items():
            box = kept(key, value.shape, rank, ranks)
            assert torch.equal(found[key], value[tuple(slice(*edge) for edge in box)]), (rank, way, key)


def test_layers_of_virtual_stages_come_from_the_stages_that_hold_them(checkpoints, gloo):
    stored = load_file(checkpoints / "deep" / tensors.SINGLE)
    for rank, _, named in by_way(gloo(4).run(received, checkpoints / "deep", 2, 2, 1, 2, 1 << 20, 2)):
        assert dict(named).keys() == {key for key in stored if "visual" not in key}
        for key, value in named:
            assert torch.equal(value, stored[key][tuple(slice(*edge) for edge in kept(key, stored[key].shape, rank, 2))])


def test_a_stored_tied_head_comes_as_its_embedding(checkpoints, tmp_path, gloo):
    shutil.copytree(checkpoints / "tied", tmp_path / "stored")
    stored = load_file(checkpoints / "tied" / tensors.SINGLE)
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()},
              tmp_path / "stored" / tensors.SINGLE, metadata={"format": "pt"})  # fmt: skip
    for rank, _, named in by_way(gloo(4).run(received, tmp_path / "stored", 2, 2, 1, 2, 6000)):
        found, rows = dict(named), slice(*kept("lm_head.weight", (61, 64), rank, 2)[0])
        assert torch.equal(found["lm_head.weight"], stored["model.embed_tokens.weight"][rows])


def planned(tensor, pipeline, ranks, me, limit=128 << 20, keeps=None):
    """Rank ``me``'s plan for Qwen2.5-VL-72B with four layers a stage, and the elements that its engine keeps."""
    arch = architecture.read("Qwen/Qwen2.5-VL-72B-Instruct")
    arch = replace(arch, layers=4 * pipeline)
    layout = SimpleNamespace(virtual=1, tensor=tensor, pipeline=pipeline, expert=1)
    has = routes.pieces(arch, architecture.padded_vocabulary([arch.vocabulary], tensor), layout)
    seats = [routes.Seat(stage * tensor + t, stage, t, 0) for stage in range(pipeline) for t in range(tensor)]
    plan = routes.Plan(
        has, seats, me, keeps or (lambda name, shape, rank: share(name, shape, rank % ranks, ranks, arch.kv_groups)), limit
    )
    wanted = [item.wanted for one in plan.rounds for item in one.items if item.last]
    return plan, sum(map(routes.volume, wanted))


@pytest.mark.parametrize(("tensor", "pipeline", "ranks"), [(8, 4, 8), (8, 2, 8), (4, 2, 8), (2, 4, 8), (8, 1, 4)])
def test_no_rank_of_72b_receives_more_than_it_keeps_or_in_rounds_much_larger_than_asked(tensor, pipeline, ranks):
    limit = 32 << 20
    for me in (0, tensor * pipeline - 1):
        plan, keeps = planned(tensor, pipeline, ranks, me, limit=limit)
        came = sum(one.received[me] for one in plan.rounds)
        assert came <= keeps
        if tensor == ranks:  # its own stage's part is here
            assert came < keeps * (1 - 0.8 / pipeline) + limit
        most = max(max(*one.sent, *one.received) for one in plan.rounds)
        assert most <= 1.01 * limit
        busiest = max(sum(one.sent[n] for one in plan.rounds) for n in range(tensor * pipeline))
        assert sum(any(one.sent) for one in plan.rounds) <= 2 * busiest / limit + 4


def test_what_no_rank_holds_is_refused():
    def beyond(name, shape, rank):
        (start, stop), *rest = whole(shape)
        return ((start, stop + 1), *rest)

    with pytest.raises(RuntimeError, match=r"no rank holds all .*embed_tokens"):
        planned(2, 1, 1, 0, keeps=beyond)
