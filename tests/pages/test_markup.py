"""Whatever files say, a page has the elements and attributes that its template gives it, shows the text, and can be written."""

from __future__ import annotations

import functools
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.rows import answer
from tests.pages.test_reproduce import finish, work_of
from vold_nemo.config import Config
from vold_nemo.config.writing import replace_text
from vold_nemo.evaluation.pairs import Model, compare
from vold_nemo.evaluation.results import Weights, build_results
from vold_nemo.pages import compare as compare_page
from vold_nemo.pages import drift as drift_page
from vold_nemo.pages import plan as plan_page
from vold_nemo.pages.render import harmless
from vold_nemo.pages.report import page as report_page
from vold_nemo.pages.report.material import Example, Material, RunRecord
from vold_nemo.pages.reproduce.page import write_page
from vold_nemo.pages.reproduce.work import Reproduction
from vold_nemo.planning.memory import Phase
from vold_nemo.planning.plan import Plan, StagePlan

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</pre>", "</style>", "</title>", "</svg>", "-->", "<!--", '"',
    "'", "&", "&lt;", '" onload="alert(1)', "{{ 7 * 7 }}", "{% raw %}", "{#", "javascript:alert(1)", "url(x)", ";color:red",
    "\ud800", "\udfff", "\x00", "\x1b[31m", "\r", "\n", "\u202e", "\u2028", "é", " ",
]  # fmt: skip
texts = st.lists(st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=5), min_size=1, max_size=5).map("x".join)
BOX = "\\boxed{3}"  # every answer has one, or a page would mark more of some


def rows(said: str, right: bool) -> list:
    """A hostile set and the image questions; a benchmark's facts, too."""
    text = said.replace("\\boxed", "") + BOX
    made = dict(id=said, question=said, truth=said, text=text, reason=said, finish=said, subject=said, type=said, judge=said)
    return [answer(right, set=kind, rules=2, skill="reasoning", extracted=said if right else None, **made)
            for kind in ("image", f"set {said}")]  # fmt: skip


def report(said: str) -> str:
    answers = {arm: rows(said, arm == "sft_vold") for arm in ("sft_grpo", "sft_vold", f"arm {said}")}
    results = build_results(answers, {arm: Weights(said, said) for arm in answers}, {"engine": said, "questions": {said: said}})
    for entry in results.accuracy["sft_vold"].values():
        entry.own = {said: 0.5}
    metrics = {f"seconds.{said}": 2.0, "reward_mean": 0.5, "teacher_tokens": 10, "masked_rate": 0.5, "loss": 1.0}
    steps = [{"step": step, **metrics} for step in (1, 2)]
    runs = {arm: RunRecord(arm, Path(), steps, {said: said, "precision": said}) for arm in answers}
    shown = {arm: arm_rows[0] for arm, arm_rows in answers.items()}
    example = Example(said, said, said, ["data:image/png;base64,AA"], shown)
    config = Config(name=said)
    config.report.differences, config.report.crutches = [said], [said]
    return report_page.draw(config, Material(results, runs, [example], [said], [(said, said)]))


def comparison(said: str) -> str:
    models = [Model(f"{name} {said}", said) for name in ("a", "b")]
    for model, right in zip(models, (False, True), strict=True):
        for row in rows(said, right):
            model.answers[row.set] = {row.id: row, "other": answer(False, set=row.set, id="other", text=BOX)}
    return compare_page.draw(models, compare(models), {}, 6, [said])


@functools.cache
def finished() -> tuple[Reproduction, tempfile.TemporaryDirectory]:
    folder = tempfile.TemporaryDirectory()
    work = work_of(Path(folder.name), "table3")
    finish(work, "sft", "sft_grpo", "sft_vold")
    return work, folder


def reproduction(said: str) -> str:
    work, folder = finished()
    answers = {arm.name: rows(said, arm.name == "sft_vold") + [answer()] for arm in work.arms}
    build_results(answers, {}, {}).write(Path(work.config.evaluate.path) / "results.json")
    return write_page(work, Path(folder.name))[0].read_text(encoding="utf-8")


def drift(said: str) -> str:
    token = {"trace": said, "position": 1, "kl": 0.5, "token": said, "before": said, "same_first_choice": True}
    names = dict.fromkeys(("teacher", "precision", "layout", "source"), said)
    numbers = dict.fromkeys(("kl_mean", "kl_max", "same_first_choice", "gradient_cosine", "gradient_norm_ratio"), 0.5)
    return drift_page.draw({**names, **numbers, "kl_quantiles": {"0.5": 0.1}, "tokens": 3, "traces": 1, "layers": [0.1, 0.2],
                            "worst_tokens": [token]})  # fmt: skip


def plan(said: str) -> str:
    phase = Phase(said, said, None, {"parameters": 1 << 30, "engine": 1 << 31})
    config = Config(name=said)
    config.cluster.name = said
    return plan_page.draw(config, Plan((StagePlan(said, 1, (phase,), None, 80 << 30),)))


class Shape(HTMLParser):
    """The elements of a page with the attributes that hold none of the data, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        kept = {"style", "class", "src", "role", "points", "viewbox"}
        self.elements.append((tag, *((name, value if name in kept else "") for name, value in attrs)))

    def handle_endtag(self, tag):
        self.elements.append(("/", tag))

    def handle_comment(self, data):
        self.elements.append(("comment", data))

    def handle_data(self, data):
        self.text.append(data)


PAGES = {"report": report, "compare": comparison, "reproduce": reproduction, "drift": drift, "plan": plan}


@functools.cache
def plain(name: str) -> Shape:
    return Shape(PAGES[name]("word"))


@pytest.mark.parametrize("name", PAGES)
@settings(max_examples=25, deadline=None)
@given(said=texts)
def test_markup_in_data_never_reaches_a_page(name, said):
    page = PAGES[name](said)
    with tempfile.TemporaryDirectory() as folder:
        replace_text(Path(folder) / "page.html", page)
    found = Shape(page)
    assert found.elements == plain(name).elements
    tags = {element[0] for element in found.elements}
    attributes = {name for element in found.elements for name, *_ in element[1:] if element[0] not in ("/", "comment")}
    assert "script" not in tags and not any(attribute.startswith("on") for attribute in attributes)
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_text_that_the_files_hold(name):
    said = "<b>1 < 2 & \"3\" 'é' \\frac{1}{2}\x1b \ud800"
    assert harmless(said) in "".join(Shape(PAGES[name](said)).text)
    assert harmless(said) == "<b>1 < 2 & \"3\" 'é' \\frac{1}{2}␛ ?"
