"""The order of the data is a function of (seed, step)."""

from collections import Counter

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.data.order import Order


def test_every_epoch_shows_every_index_once_in_an_order_of_its_own():
    order = Order(size=10, batch=4, seed=3)
    seen = [index for step in range(5) for index in order.indices(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_resumed_run_goes_on_with_the_same_batches():
    straight = Order(100, 7, seed=1)
    batches = [straight.indices(step) for step in range(40)]
    resumed = Order(100, 7, seed=1)
    assert [resumed.indices(step) for step in range(23, 40)] == batches[23:]
    assert Order(100, 7, seed=2).indices(0) != batches[0]


def test_the_order_never_changes_between_releases():
    assert Order(8, 8, seed=1).indices(0) == [1, 5, 4, 2, 7, 0, 3, 6]


def test_a_name_stands_for_what_every_step_sees():
    order = Order(10, 4, seed=1)
    others = [Order(11, 4, 1), Order(10, 5, 1), Order(10, 4, 2), Order(10, 4, 1, sources=["a"] * 10, mixture={"a": 1})]
    assert order.name("rows") == Order(10, 4, seed=1).name("rows")
    assert len({order.name("rows"), order.name("other rows"), *(other.name("rows") for other in others)}) == 6


def test_a_dataset_without_rows_is_refused():
    with pytest.raises(ConfigError):
        Order(0, 4, seed=1)


def test_a_mixture_keeps_its_shares_and_walks_through_every_row_of_a_source_before_the_next_round():
    sources = ["math"] * 70 + ["code"] * 20 + ["chat"] * 10
    order = Order(100, 9, seed=5, sources=sources, mixture={"math": 1, "code": 3, "chat": 0})
    seen = [index for step in range(400) for index in order.indices(step)]
    for epoch in range(36):
        part = [sources[index] for index in seen[100 * epoch : 100 * epoch + 100]]
        assert (part.count("math"), part.count("code"), part.count("chat")) == (25, 75, 0)
        shown = Counter(seen[: 100 * epoch + 100])
        for rows in (range(70), range(70, 90)):
            assert max(shown[row] for row in rows) - min(shown[row] for row in rows) <= 1
    resumed = Order(100, 9, seed=5, sources=sources, mixture={"math": 1, "code": 3, "chat": 0})
    assert resumed.indices(150) == order.indices(150)


REFUSED = [{"math": 1}, {"math": 1, "code": 1, "art": 1}, {"math": 0, "code": 0}, {"math": -1, "code": 2}]


@pytest.mark.parametrize("mixture", REFUSED)
def test_a_mixture_that_does_not_fit_the_sources_is_refused(mixture):
    with pytest.raises(ConfigError, match=r"data\.mixture"):
        Order(4, 2, seed=1, sources=["math", "math", "code", "code"], mixture=mixture)


def test_rows_left_out_move_no_other_row():
    whole, less = Order(20, 4, seed=3), Order(20, 4, seed=3, without=[2, 11])
    for step in range(15):
        drawn, asked = less.indices(step), whole.indices(step)
        assert not {2, 11} & set(drawn) and len(set(drawn)) == 4
        assert [a for a, b in zip(asked, drawn, strict=True) if a != b] == [a for a in asked if a in (2, 11)]
        assert drawn == Order(20, 4, seed=3, without=[11, 2]).indices(step)
    assert whole.name("rows") == less.name("rows")


def test_what_comes_instead_is_of_the_same_source_and_new_to_the_batch_where_that_can_be():
    sources = ["a"] * 6 + ["b"] * 6
    order = Order(12, 6, 0, sources=sources, mixture={"a": 1, "b": 1}, without=[0, 7])
    for step in range(20):
        drawn = order.indices(step)
        assert sum(sources[index] == "a" for index in order.indices(2 * (step // 2)) + order.indices(2 * (step // 2) + 1)) == 6
        assert not {0, 7} & set(drawn)
    assert set(Order(3, 3, 0, without=[0, 1]).indices(0)) == {2}
    with pytest.raises(ConfigError, match=r"data\.without"):
        Order(2, 1, 0, without=[0, 1])
