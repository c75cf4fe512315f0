"""An evaluation on vLLM gives the answers of one on transformers; each rank of a job has an engine of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vold_nemo.config import Config, DatasetConfig, PromptFieldsConfig
from vold_nemo.evaluation.benchmark import evaluate
from vold_nemo.miniature.random_models import TINY, write_questions, write_random_student

pytestmark = pytest.mark.timeout(600)


def configured(root: Path, engine: str) -> Config:
    config = Config(device="cpu", precision="fp32")
    config.data.system_prompt = None
    config.rollout.vllm.cache_bytes, config.rollout.vllm.max_length, config.rollout.vllm.eager = 32 << 20, 256, True
    config.rollout.vllm.images = 6
    config.rollout.vllm.tensor_parallel = 2  # of training: an evaluation takes one device
    options = config.evaluate
    options.engine, options.path, options.models = engine, str(root / engine), {"base": str(root / "student")}
    options.text = DatasetConfig(path=str(root / "text.jsonl"))
    options.image = DatasetConfig(path=str(root / "image.parquet"), fields=PromptFieldsConfig(image="images"))
    options.max_tokens, options.batch, options.samples = 8, 8, 0
    return config


def second_of_two_ranks(root: Path) -> None:
    os.environ.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    assert evaluate(configured(root, "vllm")) is None  # the other rank's part is missing


def test_one_rank_of_two_answers_its_part_as_transformers_does(tmp_path):
    write_random_student(tmp_path / "student", replace(TINY, hidden=128))  # vLLM's CPU attention takes no heads below 32
    write_questions(tmp_path / "text.jsonl", count=6)
    write_questions(tmp_path / "image.parquet", count=6, images=True)
    evaluate(configured(tmp_path, "transformers"))
    process = multiprocessing.get_context("spawn").Process(target=second_of_two_ranks, args=(tmp_path,))
    process.start()
    process.join(500)
    assert process.exitcode == 0

    def rows(file: str) -> dict:
        lines = (tmp_path / file).read_text().splitlines()
        return {(row["set"], row["id"]): row["text"] for row in map(json.loads, lines)}

    wanted, found = rows("transformers/answers/base.jsonl"), rows("vllm/answers/base.part-1-of-2.jsonl")
    assert len(found) == 6 and {kind for kind, _ in found} == {"text", "image"}
    assert found == {key: wanted[key] for key in found} and len(set(found.values())) > 1
