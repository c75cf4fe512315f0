"""The order of the data is a function of (seed, step)."""

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


def test_a_dataset_without_rows_is_refused():
    with pytest.raises(ConfigError):
        Order(0, 4, seed=1)
