"""Evaluation end to end on random checkpoints: counted by hand, resumed, kept, redone when it must be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.rows import answer
from vold_nemo.config import Config, ConfigError, DatasetConfig, PromptFieldsConfig
from vold_nemo.evaluation import answers as answers_module
from vold_nemo.evaluation.benchmark import evaluate, summary
from vold_nemo.miniature.random_models import write_questions, write_random_student
from vold_nemo.rollout.transformers_engine import TransformersEngine


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    write_random_student(root / "a")
    write_random_student(root / "b", seed=4)
    write_questions(root / "text.jsonl", count=20)
    write_questions(root / "image.parquet", count=6, images=True)
    return root


def configured(world: Path, out: Path, **options) -> Config:
    config = Config(device="cpu", precision="fp32")
    evaluation = config.evaluate
    evaluation.models = {"base": str(world / "a"), "sft": str(world / "b")}
    evaluation.text = DatasetConfig(path=str(world / "text.jsonl"))
    evaluation.image = DatasetConfig(path=str(world / "image.parquet"), fields=PromptFieldsConfig(image="images"))
    evaluation.max_tokens, evaluation.batch, evaluation.path = 12, 4, str(out)
    for name, value in options.items():
        setattr(evaluation, name, value)
    return config


def rows_of(out: Path, arm: str) -> list[dict]:
    return [json.loads(line) for line in (out / "answers" / f"{arm}.jsonl").read_text().splitlines()]


def tokens_generated(monkeypatch) -> list[int]:
    """Number of prompts of each later call of the engine."""
    calls: list[int] = []
    original = TransformersEngine.generate

    def counted(self, prompts, *args, **kwargs):
        calls.append(len(prompts))
        return original(self, prompts, *args, **kwargs)

    monkeypatch.setattr(TransformersEngine, "generate", counted)
    return calls


def test_results_are_what_the_answers_say(world, tmp_path):
    results = evaluate(configured(world, tmp_path, samples=3))
    assert json.loads((tmp_path / "results.json").read_text()) == results.to_json()
    for arm in ("base", "sft"):
        rows = rows_of(tmp_path, arm)
        assert len(rows) == (20 + 6) * (1 + 3)
        for kind, n in (("text", 20), ("image", 6)):
            entry = results.accuracy[arm][kind]
            greedy = [row for row in rows if row["set"] == kind and row["mode"] == "greedy"]
            right = sum(row["extracted"] == row["truth"] for row in greedy)
            assert (entry.n, entry.correct, entry.value) == (n, right, right / n)
            assert entry.low <= entry.value <= entry.high
            assert all(len(row.get("pixels") or []) == row["question"].count("▢") for row in greedy)
            sampled = [row["reward"] for row in rows if row["set"] == kind and row["mode"] == "sampled"]
            assert entry.sampled.value == pytest.approx(sum(sampled) / len(sampled)) and entry.sampled.samples == 3
    assert [(d.first, d.second) for d in results.differences["image"]] == [("sft", "base")]
    assert "base" in summary(results) and "image" in summary(results)


def test_a_finished_arm_is_read_back_and_a_changed_one_answers_again(world, tmp_path, monkeypatch):
    first = evaluate(configured(world, tmp_path))
    calls = tokens_generated(monkeypatch)
    assert evaluate(configured(world, tmp_path, batch=16)) == replace(first, settings={**first.settings, "batch": 16})
    assert calls == []
    evaluate(configured(world, tmp_path, models={"base": str(world / "a"), "sft": str(world / "a")}))
    assert sum(calls) == 26, "only the arm whose weights changed"
    calls.clear()
    evaluate(configured(world, tmp_path, max_tokens=13))
    assert sum(calls) == 52


def test_an_interrupted_arm_goes_on_where_it_stopped_with_the_same_answers(world, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = evaluate(configured(world, whole, samples=2))
    evaluate(configured(world, broken, samples=2))
    store = broken / "answers" / "sft.jsonl"
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:37]) + lines[37][:30])  # one sample of a question kept, the next line torn
    calls = tokens_generated(monkeypatch)
    assert evaluate(configured(world, broken, samples=2)) == expected
    assert rows_of(broken, "sft") == rows_of(whole, "sft")
    assert 0 < sum(calls) < 2 * 26


def test_the_verifier_s_verdict_is_what_counts(world, tmp_path):
    """A model's answers are replaced by right and wrong ones: accuracy follows."""
    rows = [
        answer(i < 15, id=str(i), extracted="1" if i < 18 else None, finish="stop" if i else "length", tokens=10 + i)
        for i in range(20)
    ]
    from vold_nemo.evaluation.results import summarise

    entry = summarise(rows, "text")
    assert (entry.value, entry.correct, entry.no_answer, entry.truncated) == (0.75, 15, 2, 1)
    assert entry.tokens_mean == 19.5 and entry.sampled is None
    assert summarise(rows, "image") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": {}}, "evaluate.models"),
        ({"models": {"x": "/nowhere"}}, "safetensors"),
        ({"models": {"../x": "/nowhere"}}, "rename the arm"),
        ({"text": None, "image": None}, "at least one dataset"),
    ],
)
def test_what_cannot_be_evaluated_is_named_before_anything_runs(world, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(configured(world, tmp_path, **options))


def test_fingerprint_sees_the_bytes_of_the_weights(world, tmp_path):
    assert answers_module.model_fingerprint(world / "a") != answers_module.model_fingerprint(world / "b")
    write_random_student(tmp_path / "again")
    assert answers_module.model_fingerprint(world / "a") == answers_module.model_fingerprint(tmp_path / "again")
