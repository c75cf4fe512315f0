"""Variables that are set before torch is imported: which, where, and that a person's own value stands."""

import importlib
from dataclasses import replace

import pytest

from vold_nemo.config import environment
from vold_nemo.config.compose import compose
from vold_nemo.megatron.diagnosis import GOOD, NOTE
from vold_nemo.megatron.launch_probes import variables

CONNECTIONS, ALLOCATOR = environment.CONNECTIONS, environment.ALLOCATOR
SEGMENTS = "expandable_segments:True"


def given(verb, *keys, capability=9.0, **before):
    env = dict(before)
    environment.set_in(env, environment.wanted(compose(["experiment=paper_3b", *keys]), verb, capability))
    return env


@pytest.mark.parametrize(
    ("keys", "capability", "connections"),
    [
        (("parallel=tp2",), 9.0, "1"), (("parallel.context=2",), 8.0, "1"), (("parallel=tp2",), None, "1"),
        (("parallel=single",), 9.0, None), (("parallel=pp2",), 9.0, None), (("parallel=tp2",), 10.0, None),
    ],
)  # fmt: skip
def test_one_hardware_queue_where_megatron_s_collectives_are_to_be_hidden(keys, capability, connections):
    assert given("sft", *keys, capability=capability).get(CONNECTIONS) == connections


def test_segments_that_grow_but_not_in_memory_that_ranks_of_an_engine_share(monkeypatch):
    assert given("sft")[ALLOCATOR] == SEGMENTS and given("vold", "rollout=transformers")[ALLOCATOR] == SEGMENTS
    monkeypatch.setattr(environment, "version", lambda name: "0.32.0")
    assert given("vold", "rollout=vllm")[ALLOCATOR] == SEGMENTS
    assert ALLOCATOR not in given("vold", "rollout=vllm", "rollout.vllm.tensor_parallel=2")
    monkeypatch.setattr(environment, "version", lambda name: "0.11.2")
    assert ALLOCATOR not in given("vold", "rollout=vllm")


def test_a_person_s_own_value_stands_whichever_name_it_has():
    own = {CONNECTIONS: "8", "PYTORCH_ALLOC_CONF": "max_split_size_mb:512", environment.GLOO_LAZY: "0"}
    assert given("sft", "parallel=tp2", **own) == own
    assert given("export_hf", "parallel=tp2") == {}  # nothing is trained


def test_the_doctor_says_what_a_run_sets_and_what_contradicts_it(monkeypatch):
    config = compose(["experiment=paper_3b", "parallel=tp2", "rollout=vllm", "rollout.vllm.tensor_parallel=2"])
    for name in (CONNECTIONS, ALLOCATOR, "PYTORCH_ALLOC_CONF", environment.GLOO_LAZY):
        monkeypatch.delenv(name, raising=False)
    found = variables(config, "vold", 9.0)
    assert {one.grade for one in found} == {GOOD} and "CUDA_DEVICE_MAX_CONNECTIONS=1, which vold sets" in found[0].what
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", SEGMENTS)
    monkeypatch.setenv(CONNECTIONS, "32")
    queue, allocator, _ = variables(config, "vold", 9.0)
    assert queue.grade == allocator.grade == NOTE and "1 is wanted" in queue.follows and "unset it" in allocator.follows
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    assert "fragments" in variables(compose(["experiment=paper_3b"]), "sft", 9.0)[1].follows


def test_a_recipe_that_trains_on_gpus_sets_them_and_one_on_a_cpu_none(monkeypatch):
    from vold_nemo.config import driver

    module = importlib.import_module("vold_nemo.command.recipe")
    on_cpu, on_gpu = (compose([f"experiment={name}", "parallel=tp2"]) for name in ("miniature", "paper_3b"))
    env: dict[str, str] = {}
    monkeypatch.setattr(module.os, "environ", env)
    monkeypatch.setattr(driver, "compute_capability", lambda: 9.0)
    module._set_variables(on_cpu, "sft")
    assert env == {}
    module._set_variables(replace(on_gpu, device="cuda"), "sft")
    assert env == {CONNECTIONS: "1", ALLOCATOR: SEGMENTS, environment.GLOO_LAZY: "1"}
