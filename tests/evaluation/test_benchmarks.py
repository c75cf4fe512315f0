"""The public benchmarks, read from files in their published schema; what each one's rules make of answers."""

from __future__ import annotations

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from tests.evaluation.cases import published
from vold_nemo.config import Config, ConfigError, JudgeConfig, RewardConfig
from vold_nemo.data.rejected import Rejected
from vold_nemo.evaluation.benchmark import evaluate
from vold_nemo.evaluation.benchmarks.load import load_benchmark
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.evaluation.benchmarks.scores import own_scores
from vold_nemo.evaluation.benchmarks.table import BENCHMARKS, benchmark
from vold_nemo.evaluation.judge import judge_rows
from vold_nemo.evaluation.results import summarise
from vold_nemo.evaluation.scorers import score
from vold_nemo.miniature.random_models import write_random_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    for name in BENCHMARKS:
        published.write(root, name)
    return root


def load(folder, name: str, **options) -> list[Question]:
    settings = {"limit": None, "system_prompt": None, "rejected": Rejected(None, 0.9)} | options
    return load_benchmark(name, path=str(folder / name), **settings)


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


COPIED = "How far does the cart roll?\n" + "\n".join(f"{letter}. {10 * i} m" for i, letter in enumerate("ABCDEFGHIJ", 1))

QUIRKS = [  # benchmark, place of the question in its fixture, response, right (None: unparsed)
    ("mathvision", 1, r"\boxed{B}", True),
    ("mathvision", 1, r"\boxed{\text{Friday}}", True),
    ("mathvision", 1, "It is Friday.", True),
    ("mathvision", 1, r"\boxed{C}", False),
    ("mathvision", 0, "C\n", True),
    ("mathvision", 0, "(C) C\n", True),
    ("mathvision", 0, "The string of kite C is the longest, so the answer is (C).", True),
    ("mathvision", 0, "Kite C.", None),
    ("mathvision", 2, r"\boxed{\frac{36}{13}}", True),
    ("mathvision", 2, r"\boxed{36/13}", True),
    ("mathvision", 2, r"\boxed{2.77}", False),
    ("mathvision", 3, r"\boxed{69^\circ}", True),
    ("mathvision", 3, r"\boxed{69}", True),
    ("mathvision", 3, "69°", True),
    ("mathvision", 4, "The answer is E.", False),
    ("mathvision", 4, r"\boxed{C}", True),
    ("mathvista", 0, "12", True),
    ("mathvista", 0, "(B) 12", True),
    ("mathvista", 0, "The correct answer is (B) 12.", True),
    ("mathvista", 0, "AB is 12 long.", True),
    ("mathvista", 0, "AB is 13 long.", None),
    ("mathvista", 0, "C", False),
    ("mathvista", 1, "0.6", True),
    ("mathvista", 1, "0.60", True),
    ("mathvista", 1, "0.62", True),
    ("mathvista", 1, "0.66", False),
    ("mathvista", 1, "60%", True),
    ("mathvista", 1, "3/5", True),
    ("mathvista", 2, "between 2007 and 2008", True),
    ("mathvista", 2, "[2008, 2007]", False),
    ("mathvista", 3, "1,000 g", True),
    ("mathvista", 3, "The cup holds 1000 grams.", True),
    ("mathvista", 3, "1 kg", False),
    ("mathvista", 3, "It depends on the liquid.", None),
    ("logicvista", 0, "C", True),
    ("logicvista", 0, "c", True),
    ("logicvista", 0, "The sequence is A, B, C, D.", None),
    ("logicvista", 0, "The answer is C and D.", False),
    ("logicvista", 1, "BD", True),
    ("logicvista", 1, "D and B", True),
    ("logicvista", 1, "B, D", True),
    ("logicvista", 1, "The answer is B.", False),
    ("logicvista", 1, "A, B, D", False),
    ("logicvista", 1, r"\boxed{B, D}", True),
    ("logicvista", 1, "The answers are **B** and **D**.", True),
    ("logicvista", 2, "3", True),
    ("logicvista", 2, "There are three.", True),
    ("logicvista", 2, "The answer is 4.", False),
    ("logicvista", 1, "", None),
    ("dynamath", 0, '{"solution": "2π/3", "short answer": "2.094"}', True),
    ("dynamath", 0, '{"short answer": 2.094}', True),
    ("dynamath", 0, '{"solution": "x", "short answer": "2.100"}', False),
    ("dynamath", 0, r"\boxed{\frac{2\pi}{3}}", True),
    ("dynamath", 0, '{"solution": "The period is \\(2\\pi/3\\)", "short answer": "2.094"}', True),
    ("dynamath", 0, '```json\n{"solution": "a", "short answer": "2.094"}\n```', True),
    ("dynamath", 0, "2.095", True),
    ("dynamath", 1, '{"solution": "a", "short answer": "B"}', True),
    ("dynamath", 1, '{"short answer": "(B) no"}', True),
    ("dynamath", 1, '{"short answer": "A"}', False),
    ("dynamath", 1, "Answer: B", True),
    ("dynamath", 2, '{"short answer": "(3, 1)"}', True),
    ("dynamath", 2, '{"short answer": "(3.0, 1.0)"}', True),
    ("dynamath", 2, '{"short answer": "3"}', False),
    ("dynamath", 2, '{"short answer": "(1, 3)"}', False),
    ("wemath", 0, "<Thought process>: <<300 dm>> <Answer>: <<C>>", True),
    ("wemath", 0, "<Thought process>: <<>> <Answer>: <C>", True),
    ("wemath", 0, "<Answer>: C", True),
    ("wemath", 0, "<Answer>: C. 3000, 4000", True),
    ("wemath", 0, "<Answer>: <<B>>", False),
    ("wemath", 0, "Answer: C", True),
    ("wemath", 0, "<Answer>: <<E. No correct answer>>", False),
    ("wemath", 0, "3000, 4000", True),
    ("wemath", 0, "The answer is C.", True),
    ("wemath", 0, r"\boxed{C}", True),
    ("wemath", 0, "<answer>C</answer>", True),
    ("wemath", 0, "<Thought process>: <<It is A or C", None),
    ("wemath", 0, "F", False),
    ("wemath", 0, "c", True),
    ("wemath", 0, "**Answer**: C", True),
    ("mmmu_pro_standard", 0, "Answer: J", True),
    ("mmmu_pro_standard", 0, "Answer: $J$", True),
    ("mmmu_pro_standard", 0, "J. 100 m", True),
    ("mmmu_pro_standard", 0, "Answer: $LETTER", None),
    ("mmmu_pro_standard", 0, "I. 90 m", False),
    ("mmmu_pro_standard", 0, "I think it rolls far.", None),
    ("mmmu_pro_standard", 0, "The cart rolls 100 m.", True),
    ("mmmu_pro_standard", 0, "Answer: K", False),
    ("mmmu_pro_standard", 0, "**Answer: J**", True),
    ("mmmu_pro_standard", 0, "A cart rolls. It is not easy to say.", None),
    ("mmmu", 1, "8,500", True),
    ("mmmu", 1, "$8,500", True),
    ("mmmu", 1, "The net income is $8,500.00.", True),
    ("mmmu", 1, "8500.001", True),
    ("mmmu", 1, "85,000", False),
    ("mmmu", 0, "B", True),
    ("mmmu", 0, "a nerve", True),
    ("mmstar", 0, "B", True),
    ("mmstar", 0, "B: The cat", True),
    ("mmstar", 0, "The cat", True),
    ("mmstar", 0, "The cat is on the book.", None),
    ("mmstar", 1, "3,000", True),
    ("mmstar", 1, "3000", True),
    ("mmstar", 1, "The answer is C", True),
    ("mmstar", 1, "It costs 3,000.", True),
    ("mathverse", 0, "The angle is 55°.", True),
    ("mathverse", 0, "A:55°", True),
    ("mathverse", 0, "B", False),
    ("mathverse", 1, r"x = 4\sqrt{3}", True),
    ("mathverse", 1, r"Therefore, $x = 4\sqrt{3}$.", True),
    ("mathverse", 1, r"\boxed{\sqrt{48}}", True),
    ("geometry3k", 0, r"\boxed{2\sqrt{221}}", True),
    ("geometry3k", 0, r"\boxed{29.73}", False),
    ("geometry3k", 1, r"\boxed{x=3}", True),
    ("mme", 0, "Yes", True),
    ("mme", 1, "No, it is 3.", True),
    ("mme", 2, "There is a dog.", None),
    ("mmmu_pro_vision", 0, f"{COPIED}\n\nIt rolls 10 s at 10 m/s.\n\nAnswer: J", True),
    ("mmmu_pro_vision", 0, f"**Question:** {COPIED}\n\n**Solution:** 10 m/s for 10 s are 100 m.\n\n**Answer: J**", True),
    ("mmmu_pro_vision", 0, COPIED, None),
    ("mmmu_pro_vision", 0, f"{COPIED}\n\nThe speed is not given, so it", None),
    ("mmmu_pro_vision", 0, "Answer: (J)", True),
    ("mmmu_pro_vision", 0, "Answer: J. 100 m", True),
    ("mmmu_pro_vision", 0, "Answer: 100 m", True),
    ("mmmu_pro_vision", 0, r"Answer: $\boxed{J}$", True),
    ("mmmu_pro_vision", 0, "Answer: Option J", True),
    ("mmmu_pro_vision", 0, "Answer: J\n\nFriction was left out of account.", True),
    ("mmmu_pro_vision", 0, "<think>Answer: B</think>Answer: J", True),
    ("mmmu_pro_vision", 0, "The cart rolls 10 m/s * 10 s = 100 m.", True),
    ("mmmu_pro_vision", 0, "Answer: I", False),
    ("mmmu_pro_vision", 0, "Answer: 10 m", False),
    ("mmmu_pro_vision", 0, "Answer: $LETTER", None),
    ("mmmu_pro_vision", 0, "I'm sorry, I can't read the text in this image.", None),
    ("mmmu_pro_standard", 0, "The best option is J (100 m).", True),
    ("mmmu_pro_standard", 0, "I would choose J.", True),
    ("mmmu_pro_standard", 0, "We choose a reference point at the start.\n\nAnswer: J", True),
    ("mmmu_pro_standard", 0, "Answer: 100 m", True),
    ("mmmu_pro_standard", 1, "They differ in <image 3>.\n\nAnswer: A", True),
    ("mmmu_pro_standard", 1, "The two differ in line.", False),
    ("mmmu_pro_standard", 1, "Line and form differ.", None),
    ("mmmu", 0, "(B)", True),
    ("mmmu", 0, "A", False),
    ("mmmu", 0, "Nerve", True),
    ("mmmu", 0, "It shows a nerve.", True),
    ("mmmu", 0, "The answer is B: a nerve.", True),
    ("mmmu", 0, "It shows a bone and a nerve.", None),
    ("mmmu", 1, "eight thousand five hundred", True),
    ("mmmu", 1, r"\boxed{8500}", True),
    ("mmmu", 1, "Net income: $8,500", True),
    ("mmmu", 1, "Revenue minus cost is 10,000 - 1,500 = 8,500.", True),
    ("mmmu", 1, "-8,500", False),
    ("mmmu", 1, "The statement cannot be read.", None),
    ("mmstar", 0, "B. The cat", True),
    ("mmstar", 0, "The cat is on top.", True),
    ("mmstar", 0, "The answer is B: The cat.", True),
    ("mmstar", 0, "Cat", True),
    ("mmstar", 0, "A", False),
    ("mmstar", 0, "Nothing is on top.", False),
    ("mmstar", 0, "The cup or the cat.", None),
    ("mmstar", 1, "$3,000", True),
    ("mmstar", 1, "2,000", False),
    ("mathverse", 0, "55", True),
    ("mathverse", 0, "55 degrees", True),
    ("mathverse", 0, r"\boxed{55^\circ}", True),
    ("mathverse", 0, "∠ABC = 55°", True),
    ("mathverse", 0, "The correct option letter is A.", True),
    ("mathverse", 0, "The correct option letter is **A**: 55°", True),
    ("mathverse", 0, "The angle is 60°.", None),
    ("mathverse", 1, "x = 4√3", True),
    ("mathverse", 1, r"\boxed{4\sqrt3}", True),
    ("mathverse", 1, "The final value is 4√3.", True),
    ("mathverse", 1, "6", False),
    ("geometry3k", 0, r"$\boxed{2\sqrt{221}}$", True),
    ("geometry3k", 0, r"\boxed{x = 2\sqrt{221}}", True),
    ("geometry3k", 0, r"\boxed{\sqrt{884}}", True),
    ("geometry3k", 0, r"So $x = 2\sqrt{221}$.", True),
    ("geometry3k", 0, "2√221", True),
    ("geometry3k", 0, r"\boxed{\sqrt{221}}", False),
    ("geometry3k", 0, r"<think>\boxed{2\sqrt{221}}", None),
    ("geometry3k", 1, "3", True),
    ("geometry3k", 1, "**y = 3**", True),
    ("geometry3k", 1, r"\boxed{3.0}", True),
    ("geometry3k", 1, r"\boxed{\frac{6}{2}}", True),
    ("geometry3k", 1, r"\boxed{3\text{ cm}}", True),
    ("geometry3k", 1, r"\boxed{30}", False),
    ("geometry3k", 1, "The triangle has no right angle.", None),
    ("mme", 0, "yes", True),
    ("mme", 0, "**Yes**", True),
    ("mme", 0, "No", False),
    ("mme", 0, "The loop adds up to 3, so the answer is yes.", True),
    ("mme", 0, "Please answer yes or no.", None),
    ("mme", 1, "The code prints 3, not 4. So, no.", True),
    ("mme", 1, r"\boxed{\text{No}}", True),
    ("mme", 1, "<think>Is it 4? Yes?</think>No", True),
    ("mme", 2, "Yes, there is a dog in this image.", True),
    ("mme", 2, "No, there is no dog in this image.", False),
    ("mme", 2, "There is no dog in this image.", False),
    ("mme", 2, "I can't tell.", None),
    ("mme", 2, "Answer: Yes", True),
]


def test_each_benchmark_s_quirks(folder):
    asked = [load(folder, name)[place] for name, place, _, _ in QUIRKS]
    verdicts = score([response for *_, response, _ in QUIRKS], asked, RewardConfig(workers=1))
    told = [None if v.extracted is None else v.reward == 1 for v in verdicts]
    wrong = [(case, verdict) for case, said, verdict in zip(QUIRKS, told, verdicts, strict=True) if said is not case[3]]
    assert not wrong
    assert all(sum(case[0] == name for case in QUIRKS) >= 15 for name in BENCHMARKS)


def row(right: bool, **facts) -> dict:
    return {"reward": float(right), **facts}


def test_dynamath_s_worst_case_is_the_share_of_seeds_with_every_variant_right():
    right = {
        "a": [True] * 10,
        "b": [True] * 9 + [False],
        "c": [False] * 10,
        "d": [True] * 3,
    }  # d: seven variants are missing
    rows = [row(r, group=g, member=str(i)) for g, rs in right.items() for i, r in enumerate(rs)]
    scores = own_scores("dynamath", rows)
    assert scores["worst_case"] == pytest.approx(1 / 3) and scores["average"] == pytest.approx(19 / 30)
    assert scores["robustness"] == pytest.approx(10 / 19)


def test_we_math_s_four_cases_strict_and_loose():
    """Counted by hand: the published formula (525 - 0.5 IG - RM - IK) / 525 with 5 in place of 525."""
    problems = {"2steps_1": (True, True, True), "2steps_2": (True, False, True), "2steps_3": (False, False, True),
                "2steps_4": (True, True, False), "3steps_1": (True, False, True, False), "3steps_2": (True, True)}  # fmt: skip
    rows = []
    for name, rights in problems.items():
        members = [str(i) for i in range(1, len(rights))] + ["multi"]
        rows += [row(right, group=name, member=member) for member, right in zip(members, rights, strict=True)]
    scores = own_scores("wemath", rows)  # 3steps_2 lacks steps: not counted
    strict, loose = {"CM": 1, "RM": 2, "IG": 1, "IK": 1}, {"CM": 2, "RM": 1, "IG": 1, "IK": 1}
    for rule, counts in (("strict", strict), ("loose", loose)):
        assert scores[f"score_{rule}"] == pytest.approx((5 - 0.5 * counts["IG"] - counts["RM"] - counts["IK"]) / 5)
        assert scores[f"rote_memorization_{rule}"] == pytest.approx(counts["RM"] / (counts["CM"] + counts["RM"]))
    assert scores["insufficient_knowledge"] == scores["inadequate_generalization"] == 0.2


def test_mme_adds_accuracy_and_both_questions_right():
    rows = [
        row(True, group="e/1", subject="existence", skill="perception"),
        row(True, group="e/1", subject="existence", skill="perception"),
        row(True, group="e/2", subject="existence", skill="perception"),
        row(False, group="e/2", subject="existence", skill="perception"),
        row(False, group="c/1", subject="code_reasoning", skill="reasoning"),
        row(True, group="c/1", subject="code_reasoning", skill="reasoning"),
    ]
    assert own_scores("mme", rows) == {"perception": 125.0, "cognition": 50.0, "sum": 175.0}


def test_pass_at_k_and_avg_at_k_are_what_enumeration_gives():
    from itertools import combinations

    rewards = {"a": [1.0, 0.0, 0.0, 1.0], "b": [0.0] * 4, "c": [1.0, 1.0, 1.0, 0.0]}
    rows = [
        {"set": "x", "id": q, "mode": "sampled", "sample": i, "reward": r}
        for q, rs in rewards.items()
        for i, r in enumerate(rs)
    ]
    rows += [
        {
            "set": "x",
            "id": q,
            "mode": "greedy",
            "sample": 0,
            "reward": rs[0],
            "extracted": "1",
            "finish": "stop",
            "tokens": 1,
            "subject": q,
        }
        for q, rs in rewards.items()
    ]
    entry = summarise(rows, "x")
    pairs = [max(pair) for rs in rewards.values() for pair in combinations(rs, 2)]
    assert entry["sampled"]["pass"]["2"]["value"] == pytest.approx(sum(pairs) / len(pairs))
    assert entry["sampled"]["pass"]["4"]["value"] == pytest.approx(2 / 3) and entry["sampled"][
        "value"
    ] == pytest.approx(5 / 12)
    assert entry["by"]["subject"]["b"]["value"] == 0


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
    assert whole["accuracy"]["base"]["mme"]["own"].keys() == {"perception", "cognition", "sum"}
    parts = tmp_path / "parts"
    assert evaluate(configured(folder, model, parts, shards=2, shard=1)) is None
    for rank in "01":  # the other half, as two ranks of one job
        monkeypatch.setenv("RANK", rank), monkeypatch.setenv("WORLD_SIZE", "2")
        found = evaluate(configured(folder, model, parts, shards=2, shard=0))
    assert found is None, "ranks cut the job's part again: shard 1 of 2 is parts 2 and 3 of 4"
    monkeypatch.delenv("RANK"), monkeypatch.delenv("WORLD_SIZE")
    found = evaluate(configured(folder, model, parts))
    assert {**found, "settings": 0} == {**whole, "settings": 0}
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
    assert set(both["accuracy"]["base"]) == {"mme", "geometry3k"}


def test_answers_that_other_rules_scored_are_scored_again(folder, model, tmp_path):
    evaluate(configured(folder, model, tmp_path))
    file = tmp_path / "answers" / "base.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0] |= {"rules": -1, "text": f"\\boxed{{{rows[0]['truth']}}}"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate(configured(folder, model, tmp_path))["accuracy"]["base"]["geometry3k"]["correct"] == 1


class Endpoint(BaseHTTPRequestHandler):
    """Says RIGHT where the response holds the reference answer; remembers what it was asked."""

    asked: ClassVar[list] = []
    status = 200

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append((self.path, self.headers.get("Authorization"), body))
        text = body["messages"][1]["content"]
        truth = text.split("Reference answer:\n")[1].split("\n")[0]
        said = "RIGHT" if truth in text.split("Response:\n")[1] else "WRONG"
        reply = json.dumps({"choices": [{"message": {"content": f"<think>WRONG?</think>{said}"}}]}).encode()
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    Endpoint.asked, Endpoint.status = [], 200
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def unread(text: str, name: str) -> dict:
    return {"set": "mme", "id": name, "truth": "Yes", "text": text, "extracted": None, "reward": 0.0}


def test_the_judge_reads_what_the_rules_cannot_asks_once_and_shows_its_key_to_nobody(
    endpoint, folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    questions = {"mme": load(folder, "mme")}
    names = [q.id for q in questions["mme"]]
    config = JudgeConfig(url=endpoint, model="m", key_variable="MY_KEY", retries=0)
    rows = [unread("I should say Yes, certainly", names[0]), unread("Hardly.", names[1]), unread("", names[2])]
    rows.append({**unread("Yes", names[0]), "extracted": "yes", "reward": 1.0})
    judge_rows(rows, questions, config, tmp_path / "judge.jsonl")
    assert [(row["reward"], row.get("judge"), row.get("rule_reward")) for row in rows] == [
        (1.0, "right", 0.0), (0.0, "wrong", 0.0), (0.0, "none", 0.0), (1.0, None, None)]  # fmt: skip
    assert len(Endpoint.asked) == 2 and Endpoint.asked[0][:2] == ("/v1/chat/completions", "Bearer sk-secret")
    judge_rows([unread("Hardly.", names[1])], questions, config, tmp_path / "judge.jsonl")
    assert len(Endpoint.asked) == 2, "the verdict is in the cache"
    assert "secret" not in (tmp_path / "judge.jsonl").read_text() + caplog.text
    Endpoint.status = 401
    with pytest.raises(ConfigError) as error:
        judge_rows([unread("Perhaps.", names[1])], questions, config, tmp_path / "judge.jsonl")
    assert "secret" not in str(error.value) and "MY_KEY" in str(error.value)
    Endpoint.status = 500
    row_ = unread("Perhaps.", names[1])
    judge_rows([row_], questions, config, tmp_path / "judge.jsonl")
    assert (row_["judge"], row_["reward"]) == ("failed", 0.0)
