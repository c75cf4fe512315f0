"""Batches are made before they are asked for, in order, and no error is lost."""

import threading

import pytest

from vold_nemo.data.prefetcher import Prefetcher


def test_the_next_batch_is_made_while_this_one_is_used():
    begun = [threading.Event() for _ in range(6)]
    makers = set()

    def make(step):
        makers.add(threading.current_thread())
        begun[step].set()
        return step * step

    batches = Prefetcher(make, steps=5)
    assert batches.get(0) == 0
    assert begun[1].wait(10) and begun[2].wait(10)  # without a second call
    assert [batches.get(step) for step in range(1, 5)] == [1, 4, 9, 16]
    assert not begun[5].is_set()  # there is no step 5
    assert makers.isdisjoint({threading.current_thread()}) and len(makers) == 1


def test_a_slow_disk_is_waited_for_and_a_resumed_run_starts_anywhere():
    gate = threading.Event()

    def make(step):
        if step == 8:
            gate.wait(10)
        return step

    batches = Prefetcher(make, steps=10)
    assert batches.get(7) == 7
    gate.set()
    assert [batches.get(step) for step in (8, 9)] == [8, 9]
    assert [batches.get(step) for step in (3, 4)] == [3, 4]


def test_an_error_is_raised_at_its_own_step():
    def make(step):
        if step == 2:
            raise OSError("stale file handle")
        return step

    batches = Prefetcher(make, steps=4)
    assert [batches.get(0), batches.get(1)] == [0, 1]
    with pytest.raises(OSError, match="stale"):
        batches.get(2)
    assert batches.get(3) == 3
