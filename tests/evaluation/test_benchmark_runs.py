"""recipes/evaluate.py on public benchmarks: in parts, again, by other rules."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest

from vold_nemo.config import Config, ConfigError
from vold_nemo.evaluation.benchmark import evaluate
from vold_nemo.evaluation.benchmarks.table import BENCHMARKS
from vold_nemo.miniature.random_models import write_random_student


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_student(tmp_path_factory.mktemp("model") / "hf")


def configured(folder, model, out, **options) -> Config:
    config = Config(device="cpu", precision="fp32")
    config.data.max_rejected_share = 0.6
    config.data.system_prompt = None
    evaluation = config.evaluate
    evaluation.models, evaluation.benchmarks = {"base": str(model)}, ["geometry3k", "mme"]
    evaluation.benchmark_paths = {name: str(folder / name) for name in BENCHMARKS}
    evaluation.max_tokens, evaluation.batch, evaluation.path, evaluation.samples = 6, 8, str(out), 2
    for name, value in options.items():
        setattr(evaluation, name, value)
    return config


def test_parts_answered_apart_give_the_results_of_one_process(folder, model, tmp_path, monkeypatch):
    whole = evaluate(configured(folder, model, tmp_path / "whole"))
    assert whole.accuracy["base"]["mme"].own.keys() == {"perception", "cognition", "sum"}
    parts = tmp_path / "parts"
    assert evaluate(configured(folder, model, parts, shards=2, shard=1)) is None
    for rank in "01":  # the other half, as two ranks of one job
        monkeypatch.setenv("RANK", rank), monkeypatch.setenv("WORLD_SIZE", "2")
        found = evaluate(configured(folder, model, parts, shards=2, shard=0))
    assert found is None, "ranks cut the job's part again: shard 1 of 2 is parts 2 and 3 of 4"
    monkeypatch.delenv("RANK"), monkeypatch.delenv("WORLD_SIZE")
    found = evaluate(configured(folder, model, parts))
    assert replace(found, settings={}) == replace(whole, settings={})
    names = sorted(file.name for file in (parts / "answers").glob("*.jsonl"))
    assert names == ["base.jsonl", "base.part-0-of-4.jsonl", "base.part-1-of-2.jsonl", "base.part-1-of-4.jsonl"]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here: tests/vllm has an evaluation on it")
def test_an_engine_that_is_not_installed_is_refused_before_anything_is_read(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate\.engine=transformers"):
        evaluate(configured(folder, tmp_path / "no model", tmp_path, engine="vllm"))


def test_another_benchmark_leaves_the_answers_to_the_first(folder, model, tmp_path, monkeypatch):
    evaluate(configured(folder, model, tmp_path, benchmarks=["mme"]))
    evaluate(configured(folder, model, tmp_path, benchmarks=["geometry3k"]))
    monkeypatch.setattr("vold_nemo.evaluation.answers._answer_pending", lambda *a: pytest.fail("answered again"))
    both = evaluate(configured(folder, model, tmp_path))
    assert set(both.accuracy["base"]) == {"mme", "geometry3k"}


def test_answers_that_other_rules_scored_are_scored_again(folder, model, tmp_path):
    evaluate(configured(folder, model, tmp_path))
    file = tmp_path / "answers" / "base.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0] |= {"rules": -1, "text": f"\\boxed{{{rows[0]['truth']}}}"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate(configured(folder, model, tmp_path)).accuracy["base"]["geometry3k"].correct == 1
