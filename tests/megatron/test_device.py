"""The one file that says what device is here."""

from types import SimpleNamespace

import pytest
import torch

from vold_nemo.megatron import device


@pytest.mark.parametrize(("on_cpu", "where"), [(True, torch.device("cpu")), (False, 3)])
def test_parameters_are_born_where_the_configuration_says(monkeypatch, on_cpu, where):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device.of_parameters(SimpleNamespace(use_cpu_initialization=on_cpu)) == where


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


def born(path):
    """Where the parameters of a mixture of experts are made for a device that is neither the CPU nor a GPU."""
    from dataclasses import replace

    from vold_nemo.megatron import architecture, build, parallel

    layout = replace(parallel.initialize(1, 1, seed=1, device="cpu"), device=torch.device("meta"))
    arch, moved = architecture.read(path), torch.nn.Module.to
    torch.nn.Module.to = lambda self, *_: self
    try:
        model = build.build_model(arch, layout, padded_vocabulary=arch.vocabulary, dtype=torch.float32, trainable=False)
        return {name: parameter.device.type for name, parameter in model.named_parameters()}
    finally:
        torch.nn.Module.to = moved
        parallel.destroy()


def test_a_router_is_born_where_the_model_is(gloo, tmp_path):
    """Nothing moves an FP8 model of Transformer Engine's afterwards."""
    from tests.megatron import tiny

    tiny.save("qwen3_moe", tmp_path, tied=False)
    (found,) = gloo(1).run(born, tmp_path)
    routers = {where for name, where in found.items() if name.endswith("router.weight")}
    assert routers == {"meta"}
