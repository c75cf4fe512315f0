"""Host memory of what leaves the device: one slab a holder, exact, locked where a GPU is the other end and given back."""

import gc
import logging

import pytest
import torch

from vold_nemo.megatron import device, pinned
from vold_nemo.megatron.host_copy import HostCopy

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def locks(monkeypatch):
    """Addresses and bytes that were locked, and addresses that were unlocked: a GPU that is only supposed."""
    locked, unlocked = [], []
    monkeypatch.setattr(device, "lock_pages", lambda host, _: locked.append((host.data_ptr(), host.numel())) or True)
    monkeypatch.setattr(device, "unlock_pages", unlocked.append)
    return locked, unlocked


def test_one_allocation_of_the_bytes_that_are_asked_for(locks):
    locked, unlocked = locks
    sizes = {"a": 3 * 2**20 + 2, "b": 5, "none": 0, "c": 2**20 + 4}
    slab = pinned.Slab(sizes, GPU)
    assert sum(sizes.values()) <= slab.bytes < sum(sizes.values()) + len(sizes) * pinned.ALIGNMENT  # 12 MiB by powers of two
    assert locked == [(slab._memory.data_ptr(), slab.bytes)] and slab.locked
    for number, (key, size) in enumerate(sizes.items()):
        assert slab[key].numel() == size and slab[key].data_ptr() % 16 == 0
        slab[key].fill_(number)
    assert all((slab[key] == number).all() for number, key in enumerate(sizes))
    address = slab._memory.data_ptr()
    del slab
    gc.collect()
    assert unlocked == [address]


def test_nothing_is_locked_for_a_cpu(locks):
    assert not pinned.Slab({0: 8}, CPU).locked and locks == ([], [])


def test_memory_that_cannot_be_locked_is_used_as_it_is_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(device, "lock_pages", lambda *_: False)
    monkeypatch.setattr(device, "unlock_pages", lambda _: pytest.fail("was not locked"))
    monkeypatch.setattr(pinned, "_warned", False)
    with caplog.at_level(logging.WARNING):
        slabs = [pinned.Slab({0: 8}, GPU) for _ in range(2)]
    slabs[1][0].fill_(7)
    assert not slabs[0].locked and caplog.text.count("page-locked") == 1
    del slabs
    gc.collect()


def test_a_holder_has_one_slab_whatever_stays_at_first():
    gc.collect()
    before = pinned.held_bytes()
    model = torch.nn.Sequential(torch.nn.Linear(100, 7), torch.nn.Linear(7, 3))
    values = [parameter.detach().clone() for parameter in model.parameters()]
    copy = HostCopy(model)
    copy.leave(keep=[model[1].weight])
    first = pinned.held_bytes()
    assert sum(value.nbytes for value in values) <= first - before < sum(value.nbytes for value in values) + 4 * 64
    assert copy.device_bytes() == values[2].nbytes
    copy.leave()
    assert copy.device_bytes() == 0 and pinned.held_bytes() == first
    copy.come_back()
    assert all(torch.equal(parameter, value) for parameter, value in zip(model.parameters(), values, strict=True))
