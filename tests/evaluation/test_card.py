"""A model card shows the scores of its own weights, and of no others."""

import dataclasses

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.evaluation.answer_row import AnswerRow
from vold_nemo.evaluation.answers import model_fingerprint
from vold_nemo.evaluation.card import card_scores
from vold_nemo.evaluation.results import Weights, build_results


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def answered(kind: str, rewards: list[int]) -> list[AnswerRow]:
    given = {field.name: None for field in dataclasses.fields(AnswerRow)}
    given |= {"set": kind, "mode": "greedy", "finish": "stop", "tokens": 3, "extracted": "4"}
    return [AnswerRow(**given | {"id": str(number), "reward": reward}) for number, reward in enumerate(rewards)]


def test_scores_are_shown_of_the_arm_with_these_weights_and_gone_with_others(export, tmp_path):
    rows = {"base": answered("text", [0, 0]), "mine": answered("text", [1, 1, 1, 0]) + answered("image", [1, 0])}
    models = {"base": Weights(str(tmp_path / "base"), "x"), "mine": Weights(str(export), model_fingerprint(export))}
    file = tmp_path / "results.json"
    assert card_scores(file, export) == []
    build_results(rows, models, {}).write(file)
    (text, of_text), (image, of_image) = card_scores(file, export)
    assert (text, image) == ("text", "image") and of_text.startswith("75.0 % (") and "of 4, greedy" in of_text
    assert of_image.startswith("50.0 % (")
    (export / "README.md").write_text("a card changes nothing")
    assert len(card_scores(file, export)) == 2
    (export / "model.safetensors").write_bytes(b"others ")
    assert card_scores(file, export) == []


def test_a_file_that_is_no_results_is_named(export, tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"results\.json"):
        card_scores(tmp_path / "results.json", export)
