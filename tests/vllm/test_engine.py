"""The vLLM engine, on vLLM itself, beside the transformers engine and transformers' own forward pass."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.vllm import engines
from vold_nemo.config import ConfigError
from vold_nemo.miniature.random_models import (
    TINY,
    TINY_TEACHER,
    write_questions,
    write_random_student,
    write_random_teacher,
)
from vold_nemo.rollout.engine import EnginePrompt, Sampling
from vold_nemo.rollout.sync import deliver

pytestmark = pytest.mark.timeout(600)  # the first batch of a process compiles for half a minute


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Heads of 32 and more: vLLM's CPU attention takes no smaller ones."""
    root = tmp_path_factory.mktemp("engines")
    write_random_student(root / "tied", replace(TINY, hidden=128))
    write_random_student(root / "untied", replace(TINY, tied=False, hidden=128, kv_heads=1), seed=3)
    write_random_teacher(root / "qwen3", replace(TINY_TEACHER, hidden=96, head_dim=32))
    write_questions(root / "text.jsonl", count=6)
    write_questions(root / "image.parquet", count=6, images=True)
    return root


def check(found: dict, tokens: int, ranks: int = 1) -> None:
    assert found["greedy"] == found["expected"]
    assert len({tuple(ids) for ids in found["greedy"]}) > 1
    assert found["differ"] == [] and found["asked"] == []
    assert 1 / ranks <= found["kept"] < 1 / ranks + 0.1  # norms, and heads of fewer groups than ranks, are on several
    assert found["tokens"] > tokens and found["largest"] < 1e-4, found


@pytest.mark.parametrize("kind", ["text", "image"])
def test_after_a_load_ids_logprobs_and_checksum_are_those_of_transformers(gloo, folder, kind):
    [found] = gloo(1).run(engines.same_as_transformers, folder / "tied", kind, 0.2, timeout=500)
    check(found, 100)


def refusals(path) -> dict[str, str]:
    """What the engine says to each of these; the state that they leave is mended by one good load."""
    engine, weights = engines.engine_of(path), engines.language_weights(path, 0.1)
    name = "model.layers.1.mlp.down_proj.weight"
    prompts, said = engines.prompts_of(path, "text"), {}
    broken = weights[name].clone()
    broken[3, 4] = float("nan")
    streams = {
        "missing": {key: value for key, value in weights.items() if key != name},
        "unknown": weights | {"model.layers.9.mlp.down_proj.weight": weights[name]},
        "misshapen": weights | {name: weights[name][:, :-1]},
        "not finite": weights | {name: broken},
    }
    for case, stream in streams.items():
        for what, attempt in (
            (case, lambda stream=stream: deliver(stream.items(), engine, 4)),
            (f"{case}, generate", lambda: engine.generate(prompts, Sampling(max_tokens=2))),
        ):
            try:
                attempt()
            except RuntimeError as error:
                said[what] = str(error)
    deliver(weights.items(), engine, 5)
    try:
        engine.generate(prompts, Sampling(max_tokens=2), expect_version=6)
    except RuntimeError as error:
        said["stale"] = str(error)
    for case, prompt, limit in (("ids", EnginePrompt([0, 999]), 2), ("long", prompts[0], 255)):
        try:
            engine.generate([prompt], Sampling(max_tokens=limit))
        except ConfigError as error:
            said[case] = str(error)
    return said


def test_a_bad_load_names_the_tensor_and_nothing_is_sampled_from_it(gloo, folder):
    [said] = gloo(1).run(refusals, folder / "tied", timeout=500)
    for case in ("missing", "misshapen", "not finite"):
        assert "model.layers.1.mlp.down_proj.weight" in said[case], said
    assert "model.layers.9.mlp.down_proj.weight" in said["unknown"]
    for case in ("missing", "unknown", "misshapen", "not finite"):
        assert "stale" in said[f"{case}, generate"]
    assert "at version 5, asked for 6" in said["stale"]
    assert "999" in said["ids"] and "at most" in said["long"]


def asleep_and_awake(path) -> dict:
    engine, prompts = engines.engine_of(path), engines.prompts_of(path, "image")
    deliver(engines.language_weights(path, 0.1).items(), engine, 7)
    sampling = Sampling(samples=2, max_tokens=8, seed=1)
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    before = [c.ids for c in engine.generate(prompts, sampling)]
    undisturbed = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected
    engine.sleep()
    refused = []
    for attempt in (lambda: engine.generate(prompts, sampling), lambda: engine.load(iter(()), 8)):
        try:
            attempt()
        except RuntimeError as error:
            refused.append("asleep" in str(error))
    engine.wake()
    after = [c.ids for c in engine.generate(prompts, sampling)]
    keyed = [EnginePrompt(p.ids, p.images, key=i) for i, p in enumerate(prompts)]
    backwards = engine.generate(keyed[::-1], sampling)
    last = len(prompts) - 1
    back = {(last - c.prompt_index, c.sample): c.ids for c in backwards}
    other = [c.ids for c in engine.generate(prompts, Sampling(samples=2, max_tokens=8, seed=2))]
    stopped = engine.generate(prompts, Sampling(samples=4, max_tokens=40, stop_ids=tuple(range(20, 40)), seed=3))
    engine.sleep()
    with torch.no_grad():
        next(engine._model.language_model.parameters()).view(-1)[5] += 1
    try:
        engine.wake()
        changed = ""
    except RuntimeError as error:
        changed = str(error)
    deliver(engines.language_weights(path, 0.1).items(), engine, 9)
    return {
        "before": before, "after": after, "back": [back[i // 2, i % 2] for i in range(len(before))], "other": other,
        "refused": refused, "changed": changed, "undisturbed": undisturbed,
        "stopped": [(c.ids, c.finish_reason) for c in stopped], "bytes": engine.device_bytes(),
    }  # fmt: skip


def test_a_request_draws_the_same_after_sleep_and_in_any_order_and_moves_no_generator(gloo, folder):
    [found] = gloo(1).run(asleep_and_awake, folder / "tied", timeout=500)
    assert found["before"] == found["after"] == found["back"] != found["other"]
    assert found["refused"] == [True, True] and found["undisturbed"]
    assert "changed while it slept" in found["changed"]
    assert found["bytes"] > 32 << 20
    reasons = {reason for _, reason in found["stopped"]}
    assert reasons == {"stop"} or reasons == {"stop", "length"}
    for ids, reason in found["stopped"]:
        assert [20 <= i < 40 for i in ids] == [False] * (len(ids) - 1) + [reason == "stop"]


@pytest.mark.parametrize(("name", "kind"), [("untied", "text"), ("untied", "image"), ("qwen3", "text")])
def test_two_ranks_are_one_engine_or_two_and_answer_the_same(gloo, folder, name, kind):
    for size in (2, 1):
        for found in gloo(2).run(engines.same_as_transformers, folder / name, kind, 0.2, size, timeout=500):
            check(found, 40, size)


def one_rank_fails(path, rank: int) -> tuple[str, int | None]:
    import torch.distributed as dist

    engine = engines.engine_of(path, 2)
    weights = engines.kept(engine, engines.language_weights(path, 0.1))

    def stream():
        for name, tensor in weights.items():
            dist.all_reduce(torch.zeros(1))  # a rank that stopped reading would leave the other waiting here
            failing = dist.get_rank() == rank and name == "model.layers.0.mlp.up_proj.weight"
            yield name, tensor[:-1] if failing else tensor

    try:
        deliver(stream(), engine, 11)
    except RuntimeError as error:
        return str(error), engine.version
    return "", engine.version


def test_one_rank_s_failed_load_fails_every_rank_and_names_the_tensor(gloo, folder):
    for said, version in gloo(2).run(one_rank_fails, folder / "untied", 1, timeout=500):
        assert "model.layers.0.mlp.up_proj.weight" in said and version is None
