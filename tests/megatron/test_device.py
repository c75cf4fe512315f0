"""The one file that says what device is here."""

from types import SimpleNamespace

import pytest
import torch

from vold_nemo.megatron import device


@pytest.mark.parametrize(("on_cpu", "where"), [(True, "cpu"), (False, "cuda:3")])
def test_parameters_are_born_where_the_configuration_says(monkeypatch, on_cpu, where):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device.of_parameters(SimpleNamespace(use_cpu_initialization=on_cpu)) == torch.device(where)


def test_a_norm_is_born_there(monkeypatch):
    from vold_nemo.megatron.layers import RMSNorm

    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("a model on the CPU asks for no GPU"))
    config = SimpleNamespace(use_cpu_initialization=True, params_dtype=torch.bfloat16, sequence_parallel=False)
    assert RMSNorm(config, 8).weight.device.type == "cpu"


@pytest.mark.parametrize(("gpus", "named", "seen"), [(0, "1,2", []), (2, None, ["0", "1"]), (2, "5,7", ["5", "7"])])
def test_gpus_are_called_what_the_environment_calls_them(monkeypatch, gpus, named, seen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert device.visible() == seen


def test_a_cpu_is_never_waited_for_and_its_peak_is_the_process_s(monkeypatch):
    for name in ("synchronize", "empty_cache", "set_device", "max_memory_allocated", "get_device_capability"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("there is no GPU"))
    cpu = torch.device("cpu")
    device.use(cpu)
    device.synchronize(cpu)
    device.empty_cache(cpu)
    assert device.capability(cpu) is None and device.peak_bytes(cpu) > 2**20
