"""Which verifier judges a row, and what it says."""

import pytest

from vold_nemo.config import ConfigError, RewardConfig
from vold_nemo.rewards import Scorer, score_answers
from vold_nemo.rewards.registry import check, resolve

OWN = "tests.rewards.own_verifiers"
LISTED = {name: f"{OWN}:{name}" for name in ("half", "raises", "too_much", "missing")}


@pytest.fixture(scope="module")
def scorer():
    scorer = Scorer(RewardConfig(workers=2, seconds=20.0, verifiers=LISTED))
    yield scorer
    scorer.close()


def test_a_row_chooses_its_verifier_and_the_others_take_the_configured_one(scorer):
    response = r"\boxed{0.5}"
    items = [(response, r"\frac{1}{2}", name) for name in (None, "math", "numeric", f"{OWN}:half", "boxed")]
    verdicts = scorer.score(items)
    assert [verdict.reward for verdict in verdicts] == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert [verdict.extracted for verdict in verdicts] == ["0.5", "0.5", "0.5", None, "0.5"]


def test_exact_match_starts_no_process(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: pytest.fail("a process was started"))
    assert [v.reward for v in score_answers([(r"\boxed{1}", "1", None), (r"\boxed{B}", "(B)", "choice")])] == [1.0, 1.0]


def test_answers_that_need_no_computing_wait_for_no_process(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: pytest.fail("a process was started"))
    answers = [(r"\frac{1}{2}", r"\frac{1}{2}", 1), ("7", "8", 0), ("007", "7", 1), (r"\dfrac{2}{4}", "0.5", 1), ("", "8", 0)]
    verdicts = Scorer(RewardConfig("math")).score([(f"\\boxed{{{answer}}}", truth, None) for answer, truth, _ in answers])
    assert [verdict.reward for verdict in verdicts] == [reward for *_, reward in answers]


def test_equal_questions_are_computed_once(tmp_path):
    log, scorer = tmp_path / "log", Scorer(RewardConfig(f"{OWN}:notes", workers=2, seconds=20.0, isolation="off"))
    items = [(str(log), truth, f"{OWN}:notes") for truth in "abab"] + [(str(log), "a", f"0.5*boxed+0.5*{OWN}:notes")]
    assert [verdict.reward for verdict in scorer.score(items)] == [1, 1, 1, 1, 0.5]
    assert sorted(log.read_text()) == ["a", "b"]
    scorer.close()


def test_an_answer_that_took_too_long_is_still_known():
    scorer = Scorer(RewardConfig("math", seconds=0.5, workers=1))
    scorer.score([(r"\boxed{x+1}", "1+x", None)])
    (verdict,) = scorer.score([(r"\boxed{9^{9^{9^9}}+1}", "3^x", None)])
    assert (verdict.reward, verdict.extracted, verdict.trouble) == (0.0, "9^{9^{9^9}}+1", "time-out")
    scorer.close()


def test_weights_combine_verifiers(scorer):
    (verdict,) = scorer.score([(r"\boxed{0.50}", "0.5", f"0.75*math+0.25*{OWN}:half")])
    assert verdict.reward == 0.75 * 1.0 + 0.25 * 0.5
    assert (verdict.reason, verdict.extracted) == (f"math: equivalent; {OWN}:half: wrong", "0.50")
    (verdict,) = scorer.score([(r"\boxed{1e3}", "1000", "0.5*boxed+0.5*numeric(1e-3)")])
    assert verdict.reward == 0.5


@pytest.mark.parametrize(
    "name",
    ["box", "math+boxed", "0.5*math+0.6*boxed", "numeric(2)", "numeric(x)", "numeric(nan)", "0.5*math+0.5*no", "",
     f"{OWN}:missing", "no.such.module:f", f"{OWN}:not_a_function"],
)  # fmt: skip
def test_a_verifier_that_does_not_exist_is_a_configuration_error(name):
    with pytest.raises(ConfigError) as error:
        check(name)
    assert error.value.key == "reward.verifier"


def test_a_row_whose_verifier_does_not_exist_is_found_before_the_first_answer(scorer):
    assert scorer.check([None, "boxed", "choice", "numeric(0.1)"]) == set()
    assert scorer.check(["math", f"0.5*boxed+0.5*{OWN}:half"]) == {"math", f"{OWN}:half"}
    with pytest.raises(ConfigError, match="own_verifiers:missing"):
        scorer.check(["math", f"0.5*boxed+0.5*{OWN}:missing"])


@pytest.mark.parametrize(
    ("name", "message"), [("raises", "broken verifier"), ("too_much", "reward 2.0 is not a number in [0, 1]")]
)
def test_a_failing_verifier_makes_the_answer_wrong_and_says_why(scorer, name, message):
    (verdict,) = scorer.score([("x", "x", f"{OWN}:{name}")])
    assert verdict.reward == 0.0 and verdict.reason.startswith("error: ") and message in verdict.reason


CHOICES = [
    (r"\boxed{B}", "B", 1), (r"\boxed{b}", "B", 1), (r"\boxed{(B)}", "B", 1), (r"\boxed{B.}", "B", 1),
    (r"\boxed{\text{B}}", "B", 1), (r"\boxed{B) 12 cm}", "B", 1), (r"\boxed{\textbf{(B)}\ 7}", "B", 1),
    ("The answer is B.", "B", 1), ("answer: (C)", "B", 0), ("Option A? No. The answer is **B**.", "B", 1),
    (r"\boxed{Both}", "B", 0), (r"\boxed{12}", "B", 0), (r"\boxed{BC}", "B", 0), (r"B", "B", 0),
    (r"<think>answer is B</think> hm", "B", 0), (r"\boxed{B}", "12", 0), ("\\boxed{" + "(" * 10_000 + "}", "B", 0),
]  # fmt: skip


@pytest.mark.parametrize(("response", "truth", "reward"), CHOICES)
def test_multiple_choice(response, truth, reward):
    assert resolve("choice").judge(response, truth).reward == reward


NUMBERS = [
    ("1,234.5", "1234.5", 1), ("-3/4", "-0.75", 1), (r"\frac{1}{3}", "0.33333", 1), (r"-\dfrac{1}{2}", "-0.5", 1),
    (r"45^\circ", "45", 1), ("45°", "45", 1), (r"12\%", "12", 1), (r"3\text{ cm}", "3", 1), ("3 cm^2", "3", 1),
    ("x = 7", "7", 1), (r"1.2\times 10^{3}", "1200", 1), ("1.2e3", "1200", 1), (r"1{,}000", "1000", 1), ("−5", "-5", 1),
    (r"\$5", "5", 1), ("$5$", "5", 1), ("100.005", "100", 1), ("100.02", "100", 0), ("0", "0", 1), ("0.0001", "0", 0),
    ("5 or 6", "5", 0), ("1/0", "5", 0), ("", "5", 0), ("five", "5", 0), ("1e999", "5", 0), ("nan", "5", 0),
    ("1_000", "1000", 0),
    ("9^{9}", "9", 0), ("1" * 10_000, "1", 0), ("5", "five", 0), ("2(3)", "2", 0), ("5\x00", "5", 0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "truth", "reward"), NUMBERS)
def test_numbers_within_tolerance(answer, truth, reward):
    assert resolve("numeric").judge(f"\\boxed{{{answer}}}", truth).reward == reward


def test_a_tolerance_of_its_own():
    assert resolve("numeric(0.05)").judge(r"\boxed{104}", "100").reward == 1.0
    assert resolve("numeric(0.05)").judge(r"\boxed{106}", "100").reward == 0.0
