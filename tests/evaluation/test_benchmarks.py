"""The public benchmarks, read from files in their published schema; what each one's rules make of answers."""

from __future__ import annotations

import pytest

from tests.evaluation.cases import QUIRKS, published
from tests.evaluation.cases.published import load
from vold_nemo.config import ConfigError, RewardConfig
from vold_nemo.data.rejected import Rejected
from vold_nemo.evaluation.benchmarks.load import load_benchmark
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.evaluation.benchmarks.table import BENCHMARKS, benchmark
from vold_nemo.evaluation.scorers import score


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_published_row_is_a_question_with_its_images_and_a_truth_that_scores(folder, name):
    questions = load(folder, name)
    assert len({question.id for question in questions}) == len(questions) >= 1
    told = [
        f"The answer is {'$' if q.scorer == 'math' else ''}{_as_told(q)}{'$' if q.scorer == 'math' else ''}"
        for q in questions
    ]
    for question, verdict in zip(questions, score(told, questions, RewardConfig(workers=1)), strict=True):
        content = question.messages[-1]["content"]
        assert sum(part["type"] == "image" for part in content) == len(question.images) > 0
        assert question.open_images()[0].size == (56, 56)
        assert verdict.reward == 1, (question, verdict)
    silent = score(
        ["I do not know what to make of this picture, which shows hardly anything that I can recognise."]
        * len(questions),
        questions,
        RewardConfig(workers=1),
    )
    assert all(verdict.reward == 0 and verdict.extracted is None for verdict in silent)


def _as_told(question: Question) -> str:
    if question.scorer == "letters":
        return " and ".join(question.answer)
    return question.answer if not question.answer.startswith("['") else "8,500"


def text_of(question: Question) -> str:
    return "".join("▢" if part["type"] == "image" else part["text"] for part in question.messages[-1]["content"])


def test_mmmu_s_images_stand_where_question_and_options_name_them(folder):
    first, second = load(folder, "mmmu_pro_standard")
    assert text_of(first).startswith("How far does the cart in ▢ roll?\nA. 10 m\n") and "J. 100 m" in text_of(first)
    assert text_of(second).startswith("Compare ▢ and ▢. What differs?\nA. ▢\nB. line")
    assert second.images == [published.png(10), published.png(20), published.png(30)]


def test_what_each_row_function_makes_of_its_quirks(folder):
    vision = {q.id: q for q in load(folder, "mathvision")}
    assert [vision[i].scorer for i in "12345"] == ["choice", "choice", "math", "math", "choice"]
    assert (vision["3"].answer, vision["4"].answer, vision["5"].allowed()) == (r"\frac{36}{13}", r"69^\circ", "ABCDE")
    vista = load(folder, "mathvista")
    assert [(q.answer, q.scorer, q.precision) for q in vista] == [
        ("B", "choice", None), ("0.6", "number", 1), ("[2007, 2008]", "list", None), ("1000", "number", 0)]  # fmt: skip
    logic = load(folder, "logicvista")
    assert [(q.answer, q.scorer, q.domain) for q in logic] == [
        ("C", "letters", "inductive"), ("BD", "letters", "inductive"), ("3", "open", "numerical")]  # fmt: skip
    assert [q.options for q in load(folder, "mmstar")] == [
        ("The book", "The cat", "The cup", "Nothing"), ("1,000", "2,000", "3,000", "4,000")]  # fmt: skip
    assert load(folder, "mathverse")[0].options == ("55°", "65°", "75°", "85°")
    assert load(folder, "wemath")[0].options == (
        "300, 400",
        "400, 300",
        "3000, 4000",
        "4000, 3000",
        "No correct answer",
    )
    assert load(folder, "mmmu")[0].domain == "Basic_Medical_Science"
    dyna = load(folder, "dynamath")
    assert (
        len(dyna) == 30 and dyna[0].group == "1" and dyna[0].domain == "analytic geometry" and dyna[-1].member == "10"
    )
    assert len(load(folder, "dynamath", limit=2)) == 20, "the same seeds of each variant"


def test_a_row_that_is_no_question_is_counted(folder, tmp_path):
    rejected = Rejected(tmp_path / "rejected.jsonl", 0.6)
    assert len(load(folder, "mmmu_pro_vision", rejected=rejected)) == 1 and rejected.count("mmmu_pro_vision") == 1
    assert "options: not a list" in (tmp_path / "rejected.jsonl").read_text()
    with pytest.raises(ConfigError, match="1 of 2 rows rejected"):
        load(folder, "mmmu_pro_vision", rejected=Rejected(None, 0.1))


def test_what_is_not_there_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="AI4Math/MathVista --revision f3fd760"):
        load_benchmark("mathvista", path=None, limit=None, system_prompt=None, rejected=Rejected(None, 1.0))
    with pytest.raises(ConfigError, match="mathvista"):
        benchmark("mathvist")
    with pytest.raises(ConfigError, match="testmini"):
        load_benchmark("mathvista", path=str(tmp_path), limit=None, system_prompt=None, rejected=Rejected(None, 1.0))


def test_each_benchmark_s_quirks(folder):
    asked = [load(folder, name)[place] for name, place, _, _ in QUIRKS]
    verdicts = score([response for *_, response, _ in QUIRKS], asked, RewardConfig(workers=1))
    told = [None if v.extracted is None else v.reward == 1 for v in verdicts]
    wrong = [(case, verdict) for case, said, verdict in zip(QUIRKS, told, verdicts, strict=True) if said is not case[3]]
    assert not wrong
    assert all(sum(case[0] == name for case in QUIRKS) >= 15 for name in BENCHMARKS)
