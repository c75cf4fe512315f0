"""Host memory of what leaves the device: one slab a holder, exact, locked where a GPU is the other end and given back."""

import gc
import logging
from functools import partial

import pytest
import torch

from vold_nemo.megatron import device, pinned
from vold_nemo.megatron.host_copy import HostCopy

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def locks(monkeypatch):
    """Addresses and bytes that were locked, and addresses that were unlocked: a GPU that is only supposed."""
    locked, unlocked = [], []

    def memory(size, where):
        host = torch.empty(size, dtype=torch.uint8)
        if where.type == "cpu":
            return host, None
        locked.append((host.data_ptr(), size))
        return host, partial(unlocked.append, host.data_ptr())

    monkeypatch.setattr(device, "host_memory", memory)
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


@pytest.mark.parametrize("where", [GPU, CPU])
def test_room_for_copies_that_come_again_stays_where_a_gpu_copies_and_only_there(locks, where):
    locked, unlocked = locks
    room = pinned.Room()
    first = room.of({0: 100, 1: 8}, where)
    assert (room.of({0: 100, 1: 8}, where) is first) == (where is GPU)
    del first
    gc.collect()
    assert not unlocked
    other = room.of({0: 101, 1: 8}, where)
    gc.collect()
    assert other.sizes == {0: 101, 1: 8} and unlocked == [address for address, _ in locked[:1]]


def test_nothing_is_locked_for_a_cpu(locks):
    assert not pinned.Slab({0: 8}, CPU).locked and locks == ([], [])


def test_memory_that_cannot_be_locked_is_used_as_it_is_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(device, "host_memory", lambda size, _: (torch.empty(size, dtype=torch.uint8), None))
    monkeypatch.setattr(pinned, "_warned", False)
    with caplog.at_level(logging.WARNING):
        slabs = [pinned.Slab({0: 8}, GPU) for _ in range(2)]
    slabs[1][0].fill_(7)
    assert not slabs[0].locked and caplog.text.count("page-locked") == 1


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


class Runtime:
    """CUDA's, as torch hands it over."""

    def __init__(self, code):
        self.code, self.asked = code, []

    def cudaHostRegister(self, *arguments):
        self.asked.append(arguments)
        return self.code

    def cudaHostUnregister(self, address):
        self.asked.append(address)


@pytest.mark.parametrize("code", [0, 2])
def test_pages_are_locked_through_cudas_runtime_and_its_refusal_is_no_later_kernels_error(monkeypatch, code):
    runtime, launched = Runtime(code), []

    def kernel(*_, device):
        launched.append(device)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "zeros", kernel)
    host, unlock = device.host_memory(40, GPU)
    assert host.numel() == 40 and runtime.asked == [(host.data_ptr(), 40, 1)]
    assert (unlock is None) == bool(code) == bool(launched)
    if unlock:
        unlock()
        assert runtime.asked[1:] == [host.data_ptr()]
