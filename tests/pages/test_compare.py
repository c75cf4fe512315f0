"""Evaluations side by side: pairs counted by hand, questions that differ left out, a page that stands alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.cases import published
from vold_nemo.config import Config, ConfigError
from vold_nemo.evaluation.pairs import compare, read_models
from vold_nemo.pages.compare import write_comparison


def write_answers(folder: Path, arm: str, rights: dict[str, bool], *, kind: str = "mmstar", **facts) -> Path:
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    rows = [
        {"set": kind, "id": name, "mode": "greedy", "sample": 0, "question": f"▢ Which? {name}", "truth": "B", "rules": 1,
         "text": "B <b>" if right else "A", "extracted": "B" if right else "A", "reward": float(right), "subject": "math",
         "skill": "perception" if int(name) % 2 else "reasoning", "reason": "", "finish": "stop", "tokens": 1, **facts}
        for name, right in rights.items()
    ]  # fmt: skip
    with (folder / "answers" / f"{arm}.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def rights(right: range, n: int = 40) -> dict[str, bool]:
    return {str(i): i in right for i in range(n)}


def test_wins_losses_and_skills_are_counted_question_by_question(tmp_path):
    write_answers(tmp_path / "a", "base", rights(range(20)))
    write_answers(tmp_path / "b", "sft_vold", rights(range(4, 36)))
    write_answers(tmp_path / "b", "sft_vold", {"99": True})  # only this one answered it
    found = compare(read_models({"old": str(tmp_path / "a"), "new": str(tmp_path / "b" / "results.json")}))
    (pair,) = found.pairs["mmstar"]
    assert (pair.first, pair.second, pair.n) == ("new", "old", 40)
    assert pair.wins == [str(i) for i in range(20, 36)] and pair.losses == ["0", "1", "2", "3"]
    assert (pair.value, pair.only_first, pair.only_second) == (12 / 40, 16, 4)
    assert pair.p == pytest.approx(2 * sum(_choose(20, k) for k in range(5)) / 2**20)
    assert found.left_out == {"mmstar: new, old": 1}
    assert [(e.skill, e.n, e.value) for e in found.skill_pairs] == [
        ("perception", 20, 0.3),
        ("reasoning", 20, 0.3),
    ]
    assert found.skills["old"]["reasoning"].value == 0.5


def test_questions_that_two_machines_decoded_otherwise_are_counted(tmp_path):
    for folder, digest in (("a", "0a"), ("b", "0b")):
        write_answers(tmp_path / folder, "sft", rights(range(3), n=4), pixels=[digest])
        write_answers(tmp_path / folder, "sft", {"7": True}, pixels=["0c"])  # the same pixels
        write_answers(tmp_path / folder, "sft", {"8": True}, **({"pixels": ["0d"]} if folder == "a" else {}))  # from before
    found = compare(read_models({"old": str(tmp_path / "a"), "new": str(tmp_path / "b")}))
    assert found.other_pixels == {"mmstar: new, old": 4}


def _choose(n: int, k: int) -> int:
    import math

    return math.comb(n, k)


def test_an_id_with_another_truth_is_another_question(tmp_path):
    write_answers(tmp_path / "a", "x", rights(range(5), 10))
    write_answers(tmp_path / "b", "x", rights(range(5), 10), truth="C")
    assert compare(read_models({"a": str(tmp_path / "a"), "b": str(tmp_path / "b")})).pairs == {}


def test_the_page_shows_what_flipped_with_its_image_and_needs_no_other_file(tmp_path):
    published.write(tmp_path, "mmstar")
    config = Config()
    config.evaluate.benchmarks, config.evaluate.benchmark_paths = ["mmstar"], {"mmstar": str(tmp_path / "mmstar")}
    config.evaluate.path = str(tmp_path / "e")
    write_answers(tmp_path / "a", "base", {"0": False, "1": True})
    write_answers(tmp_path / "a", "sft_vold", {"0": True, "1": True})
    config.compare.results, config.compare.path = {"only": str(tmp_path / "a")}, str(tmp_path / "out")
    path, found = write_comparison(config)
    page = path.read_text()
    assert found.pairs["mmstar"][0].wins == ["0"]
    assert (
        page.count("data:image/png;base64,") == 1 and "B &lt;b&gt;" in page and "Perception against reasoning" in page
    )
    assert "http" not in page and "<script" not in page and "not shown:" not in page
    config.evaluate.benchmark_paths = {"mmstar": str(tmp_path / "nowhere")}
    assert "Images are not shown" in write_comparison(config)[0].read_text()


def test_one_model_alone_is_no_comparison(tmp_path):
    write_answers(tmp_path / "a", "base", rights(range(5), 10))
    with pytest.raises(ConfigError, match="two or more"):
        read_models({"a": str(tmp_path / "a")})
    with pytest.raises(ConfigError, match=r"answers/<arm>\.jsonl"):
        read_models({"a": str(tmp_path)})


def test_a_folder_that_cannot_be_written_is_an_error_of_its_key(tmp_path):
    write_answers(tmp_path / "a", "base", rights(range(5), 10))
    write_answers(tmp_path / "a", "sft", rights(range(6), 10))
    (tmp_path / "file").touch()
    config = Config()
    config.compare.results, config.compare.path = {"a": str(tmp_path / "a")}, str(tmp_path / "file" / "out")
    with pytest.raises(ConfigError, match=r"a path that can be written(.|\n)*Not a directory") as error:
        write_comparison(config)
    assert (error.value.key, error.value.value) == ("compare.path", config.compare.path)
