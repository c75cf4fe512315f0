"""The sets of conf/data, in the schemas they are published in (tests/data/fixtures/make.py), through their own mappings."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.data.fixtures.make import FIGURES, QUESTIONS, SOURCES, THOUGHTS
from vold_nemo.config import ConfigError, DatasetConfig, PromptFieldsConfig
from vold_nemo.config.compose import compose
from vold_nemo.data.prompts import Wanted, load_prompts, read_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.rewards.answer_keys import refusal

FIXTURES = Path(__file__).parent / "fixtures"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache in huggingface_hub's own layout that holds both hub sets."""
    from huggingface_hub import constants

    for name, folder in (("open-r1/Mixture-of-Thoughts", "Mixture-of-Thoughts"), ("hiyouga/geometry3k", "geometry3k")):
        kept = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
        shutil.copytree(FIXTURES / folder, kept / "snapshots" / COMMIT)
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "built"))
    return tmp_path / "hub"


def strict(tmp_path):
    return Rejected(tmp_path / "rejected.jsonl", 0.0)


def test_prompts_of_mixture_of_thoughts_come_from_the_hub_cache_without_its_answers(hub, tmp_path):
    data = compose(["data=orz_57k"]).data
    prompts = load_prompts(data.trace_prompts, data.system_prompt, strict(tmp_path), answers=False)
    assert [p.messages[-1]["content"] for p in prompts] == [row[0] for found in THOUGHTS.values() for row in found]
    assert [p.source for p in prompts] == [SOURCES[name] for name, found in THOUGHTS.items() for _ in found]
    assert {p.messages[0]["role"] for p in prompts} == {"system"} and {p.response for p in prompts} == {None}
    assert not list((tmp_path / "built").rglob("*.arrow"))  # read where it lies, nothing built


def test_a_subset_and_its_own_traces_can_be_asked_for(hub, tmp_path):
    config = dataclasses.replace(compose([]).data.trace_prompts, subset="science")
    (prompt,) = read_prompts(config, strict(tmp_path), Wanted(answers=False, responses=True))
    ((_, thought, answer),) = THOUGHTS["science"]
    assert prompt.response == f"<think>\n{thought}\n</think>\n\n{answer}"
    by_path = dataclasses.replace(
        config, path=str(FIXTURES / "Mixture-of-Thoughts"),  # a clone
        fields=PromptFieldsConfig(prompt="messages[0].content", response="messages[-1].content"),
    )  # fmt: skip
    (same,) = read_prompts(by_path, strict(tmp_path), Wanted(answers=False, responses=True))
    assert (same.messages, same.response) == (prompt.messages, prompt.response)


def test_orz_57k_is_read_as_its_one_array_of_dialogues(tmp_path):
    config = dataclasses.replace(compose([]).data.prompts, path=str(FIXTURES / "orz_math_57k_collected.json"))
    prompts = load_prompts(config, None, strict(tmp_path), instruction="Box it.")
    assert [(p.messages, p.answer) for p in prompts] == [
        ([{"role": "user", "content": f"{question}\nBox it."}], answer.strip()) for question, answer in QUESTIONS
    ]


def test_geometry3k_brings_its_figures_to_validation_and_evaluation(hub, tmp_path):
    config = compose(["data=orz_57k_geo3k"])
    for split, dataset in (("validation", config.vold.validation.data), ("test", config.evaluate.image)):
        prompts = load_prompts(dataset, None, strict(tmp_path))
        for prompt, (problem, answer) in zip(prompts, FIGURES[split], strict=True):
            text = problem.removeprefix("<image>")
            assert prompt.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": text}]
            assert (prompt.answer, prompt.open_images()[0].size) == (answer, (56, 56))
            assert prompt.verifier == "math"  # and stage 2's reward stays the paper's
    assert config.reward.verifier == "boxed"


def test_a_subset_or_split_that_is_not_there_is_named_with_those_that_are(hub, tmp_path):
    config = compose([]).data.trace_prompts
    for change, offered in ({"subset": "maths"}, "math"), ({"split": "test"}, "train"):
        with pytest.raises(ConfigError, match=f"Available.*{offered}"):
            load_prompts(dataclasses.replace(config, **change), None, strict(tmp_path), answers=False)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("key", "name"), [("prompt", "question"), ("answer", "anwser"), ("image", "picture"), ("source", "origin")]
)
def test_a_mapped_field_that_the_set_does_not_have_is_named_with_its_columns(tmp_path, key, name):
    path = write(tmp_path / "data.jsonl", [{"prompt": "1+1?", "answer": "2", "images": None}] * 300)
    config = DatasetConfig(path=path, fields=PromptFieldsConfig(**{key: name}))
    with pytest.raises(ConfigError, match=f"{name}: in none of") as error:
        load_prompts(config, None, Rejected(None, 1.0))
    assert error.value.key == f"data.*.fields.{key}" and "prompt, answer, images" in error.value.allowed
    if key == "answer":
        assert error.value.mend == "did you mean answer?"


def test_an_empty_split_is_an_error(tmp_path):
    (tmp_path / "data.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="at least one row"):
        load_prompts(DatasetConfig(path=str(tmp_path / "data.jsonl")), None, strict(tmp_path))


def test_an_image_that_was_cut_off_is_quarantined(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, format="PNG")
    (tmp_path / "whole.png").write_bytes(buffer.getvalue())
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:-900])  # its header is good
    rows = [{"prompt": "?", "answer": "1", "image": name} for name in ("whole.png", "cut.png")]
    rejected = Rejected(tmp_path / "rejected.jsonl", 1.0)
    config = DatasetConfig(path=write(tmp_path / "data.jsonl", rows), fields=PromptFieldsConfig(image="image"))
    assert len(load_prompts(config, None, rejected)) == 1
    assert rejected.summary() == "image: does not decode 1"


def test_an_answer_that_its_verifier_cannot_parse_is_quarantined(tmp_path):
    good = [("4", None), ("n = 4", "math"), ("B", "choice"), ("3 cm", "numeric"), ("x", "0.5*math+0.5*boxed")]
    bad = [("\\frac{1}{2", None), ("42", "choice"), ("about a dozen", "numeric"), ("4", "nobody")]
    rows = [{"prompt": "?", "answer": answer, "by": verifier} for answer, verifier in good + bad]
    config = DatasetConfig(path=write(tmp_path / "data.jsonl", rows), fields=PromptFieldsConfig(verifier="by"))
    rejected = Rejected(tmp_path / "rejected.jsonl", 1.0)
    prompts = load_prompts(config, None, rejected, refuse=refusal("boxed"))
    assert [p.answer for p in prompts] == [answer for answer, _ in good]
    assert rejected.reasons[config.path] == {
        "answer: verifier boxed cannot parse it": 1, "answer: verifier choice cannot parse it": 1,
        "answer: verifier numeric cannot parse it": 1, "answer: verifier 'nobody' does not exist": 1,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="nobody"):
        refusal("nobody")("4", None)
