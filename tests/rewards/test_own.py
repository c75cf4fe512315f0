"""The user's own verifiers: what they may return, when a wrong one is found, and who may name one."""

import functools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from vold_nemo.command.recipe import _try_verifiers
from vold_nemo.config import Config, ConfigError, RewardConfig
from vold_nemo.rewards import Scorer
from vold_nemo.rewards.alarms import require_verdicts
from vold_nemo.rewards.answer_keys import refusal
from vold_nemo.rewards.names import FOREIGN, Names
from vold_nemo.rewards.own import NotAVerdict, called, imported
from vold_nemo.rewards.verdict import Verdict

OWN = "tests.rewards.own_verifiers"
HERE = "tests.rewards.test_own"
GOOD = {
    "bool": (True, 1), "int": (0, 0), "float": (0.25, 0.25), "float32": (np.float32(1), 1), "bool_": (np.bool_(False), 0),
    "float16": (np.float16(0.5), 0.5), "array": (np.array([[1]]), 1), "tensor": (torch.tensor(0.5), 0.5),
    "truth": (torch.tensor(True), 1),
    "bfloat16": (torch.tensor([1], dtype=torch.bfloat16), 1),
    "Fraction": (Fraction(1, 2), 0.5), "Decimal": (Decimal("0.5"), 0.5), "rounded": (np.float32(1.0000001), 1),
    "verdict": (Verdict(np.float64(1), 7, ""), 1),
}  # fmt: skip
BAD = {
    "dict": {"score": 1.0}, "None": None, "text": "1.0", "tuple": (1.0, "right"), "list": [1.0], "two": np.array([1, 0]),
    "twice": torch.ones(2), "nan": math.nan, "minus": -1, "percent": 100.0, "complex": 1j, "object": object(), "set": {1},
    "generator": (x for x in [1.0]), "lambda": lambda: 1.0, "class": float, "verdict": Verdict(None, None, "x"),
}  # fmt: skip


def gives(value, response, truth):
    return value


for name_, (value_, _) in GOOD.items():
    globals()[f"good_{name_}"] = functools.partial(gives, value_)
for name_, value_ in BAD.items():
    globals()[f"bad_{name_}"] = functools.partial(gives, value_)


@pytest.mark.parametrize("name", GOOD)
def test_numbers_of_python_numpy_and_torch_are_rewards(name):
    verdict = called(f"{HERE}:good_{name}", "x", "x")
    assert type(verdict.reward) is float and verdict.reward == GOOD[name][1]
    assert verdict.reason == ("right" if verdict.reward == 1 else "wrong")


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_no_verdict(name):
    with pytest.raises(NotAVerdict):
        called(f"{HERE}:bad_{name}", "x", "x")


def test_what_a_verdict_says_is_cut_short_and_text():
    verdict = called(f"{OWN}:says_much", "x", "x")
    assert (len(verdict.extracted), len(verdict.reason)) == (203, 200)
    assert called(f"{HERE}:good_verdict", "x", "x").extracted == "7"


@pytest.mark.parametrize("name", ["one_parameter", "three_parameters", "by_name_alone", "awaited", "Awaited", "streams"])
def test_a_function_with_another_signature_is_found_when_it_is_named(name):
    with pytest.raises(ConfigError, match="a function of \\(response, truth\\)"):
        imported(f"{OWN}:{name}")


@pytest.mark.parametrize("name", ["full", "keywords", "Callable", "instance"])
def test_whatever_can_be_called_with_a_response_and_a_truth_may_be_named(name):
    imported(f"{OWN}:{name}")


@pytest.mark.parametrize(
    ("name", "said"),
    [("returns_dict", "of type dict"), ("forgets", "of type NoneType"), ("returns_coroutine", "a coroutine"),
     ("from_minus_one", "-1.0 is not a number in"), ("Callable", "of type Callable"), ("in_c", "not called with")],
)  # fmt: skip
def test_one_call_at_the_start_finds_what_never_gives_a_reward(name, said):
    scorer = Scorer(RewardConfig(f"{OWN}:{name}", workers=1))
    try:
        with pytest.raises(ConfigError) as error:
            scorer.try_own([(None, "7"), (None, "8")])
    finally:
        scorer.close()
    assert said in str(error.value) and error.value.value == f"{OWN}:{name}"


def test_the_first_calls_of_a_working_verifier_only_warn():
    scorer = Scorer(RewardConfig(f"{OWN}:truthy", workers=1, verifiers={"a": f"{OWN}:half", "b": f"{OWN}:raises"}))
    try:
        assert scorer.try_own([("boxed", "7"), ("a", "7"), ("a", None)]) == []
        assert "has no reward in 1 of 1" in scorer.try_own([(None, "7")])[0]
        assert "2 of 2 first calls came to no verdict: error: RuntimeError" in scorer.try_own([("b", "7")])[0]
    finally:
        scorer.close()


def test_a_step_without_a_single_verdict_ends_the_run_and_one_with_any_does_not():
    reasons = ["error: KeyError: 'x'", "error: KeyError: 'x'", "time-out: over 2 s of processor time"]
    with pytest.raises(ConfigError, match="step 3: none of 3 answers was judged; 2 of them: error: KeyError"):
        require_verdicts("step 3", ["error", "error", "time-out"], reasons)
    require_verdicts("step 3", ["error", None, "time-out"], reasons)
    require_verdicts("step 3", [], [])


def test_a_dry_run_calls_each_verifier_that_the_configuration_names(capsys):
    for changed, said in (
        (RewardConfig(f"{OWN}:returns_dict"), "of type dict"), (RewardConfig(verifiers={"mine": f"{OWN}:forgets"}), "NoneType"),
        (RewardConfig("judge"), "url and model"), (RewardConfig("maths"), "boxed"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            _try_verifiers(Config(reward=changed))
    _try_verifiers(Config(reward=RewardConfig(verifiers={"mine": f"{OWN}:raises"})))
    assert "2 of 2 first calls came to no verdict" in capsys.readouterr().err


LISTED = {"maths": f"{OWN}:half", "mine": f"{OWN}:full"}


@pytest.mark.parametrize(
    ("name", "full"),
    [(None, "math"), ("boxed", "boxed"), ("numeric(0.1)", "numeric(0.1)"), ("maths", f"{OWN}:half"),
     ("0.5*maths+0.5*boxed", f"0.5*{OWN}:half+0.5*boxed"), (f"{OWN}:full", f"{OWN}:full"),
     ("judge(mine)", f"judge({OWN}:full)")],
)  # fmt: skip
def test_a_row_names_what_is_built_in_or_listed(name, full):
    assert Names(RewardConfig("math", verifiers=LISTED)).full(name) == full


@pytest.mark.parametrize(
    "name",
    ["timeit:timeit", "os:system", f"{OWN}:raises", "0.5*timeit:timeit+0.5*boxed", "1*builtins:eval", "judge(os:system)",
     "subprocess:getoutput"],
)  # fmt: skip
def test_a_row_cannot_name_code_and_the_code_is_not_even_imported(name, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("it was imported"))
    scorer = Scorer(RewardConfig("boxed", verifiers=LISTED))
    for asked in (lambda: scorer.check([name]), lambda: scorer.score([("x", "x", name)])):
        with pytest.raises(ConfigError) as error:
            asked()
        assert error.value.key == FOREIGN
    assert "does not name" in refusal(RewardConfig("boxed", verifiers=LISTED))("x", name)


def test_the_configuration_itself_may_name_code_by_its_path():
    names = Names(RewardConfig(f"0.5*{OWN}:full+0.5*math"))
    assert names.full(f"{OWN}:full") == f"{OWN}:full" and names.is_own(None)
    assert not Names(RewardConfig("math")).is_own("numeric")


@pytest.mark.parametrize(
    ("name", "path"), [("math", f"{OWN}:full"), ("judge", f"{OWN}:full"), ("a b", f"{OWN}:full"), ("a", "os.system")]
)
def test_a_list_that_hides_a_built_in_or_leads_nowhere_is_refused(name, path):
    with pytest.raises(ConfigError, match=r"reward\.verifiers"):
        Names(RewardConfig("math", verifiers={name: path}))
