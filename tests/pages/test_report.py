"""The report: its verdict follows the numbers, the page stands alone, what is missing is said."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.evaluation.rows import answer
from vold_nemo.config import Config, ConfigError, DatasetConfig, PromptFieldsConfig, ReportConfig
from vold_nemo.evaluation.answer_row import AnswerRow, as_lines
from vold_nemo.evaluation.results import Results, Weights, build_results
from vold_nemo.miniature.random_models import write_questions
from vold_nemo.pages.report.material import Material
from vold_nemo.pages.report.page import draw, write_report
from vold_nemo.pages.report.verdict import headline, sentences

ARMS = ("base", "sft", "sft_grpo", "sft_vold")


def row(kind: str, i: int, right: bool, **facts) -> AnswerRow:
    said = 1 if right else 3
    text = f"2+9=1\n\\boxed{{{said}}} <&>"
    return answer(right, set=kind, id=f"{kind}-{i:05d}", text=text, extracted=str(said), tokens=9, **facts)


def results_with(right: dict[str, int], n: int = 200) -> tuple[dict[str, list[AnswerRow]], Results]:
    """The first ``right[arm]`` of ``n`` questions answered right, text and image alike."""
    answers = {arm: [row(kind, i, i < k) for kind in ("text", "image") for i in range(n)] for arm, k in right.items()}
    models = {arm: Weights(f"run/{arm}/hf", "ab" * 16) for arm in right}
    return answers, build_results(answers, models, {"max_tokens": 40, "questions": {"image": "image.parquet"}})


@pytest.mark.parametrize(
    ("vold", "grpo", "tone", "says"),
    [
        (150, 100, "good", "VOLD beat GRPO in this run: 75.0% against 50.0% of 200 image questions."),
        (100, 150, "bad", "VOLD did not beat GRPO in this run; it was worse"),
        (102, 100, "open", "VOLD did not beat GRPO in this run: 51.0% against 50.0%"),
        (100, 100, "open", "VOLD did not beat GRPO"),
    ],
)
def test_the_headline_says_what_was_measured(vold, grpo, tone, says):
    _, results = results_with({"base": 40, "sft": 90, "sft_grpo": grpo, "sft_vold": vold})
    first = headline(results)
    assert first.tone == tone and first.text.startswith(says)


def test_each_claim_follows_its_own_difference():
    _, results = results_with({"base": 40, "sft": 120, "sft_grpo": 118, "sft_vold": 160})
    told = {s.text: s.tone for s in sentences(results)}
    assert (
        told["What stage 2 with GRPO adds to the cold start, on images: SFT + GRPO cannot be told from SFT."] == "open"
    )
    assert told["What stage 2 with VOLD adds to the cold start, on images: SFT + VOLD is better than SFT."] == "good"
    assert told["100% of what was gained on text arrived on images."] == "good"


def test_a_difference_reads_the_same_from_both_ends():
    _, results = results_with({"sft_vold": 150, "sft_grpo": 100})  # the file holds grpo - vold
    entry, turned = (
        results.difference("image", *pair) for pair in (("sft_vold", "sft_grpo"), ("sft_grpo", "sft_vold"))
    )
    assert entry.value == -turned.value == 0.25
    assert (entry.low, entry.high) == (-turned.high, -turned.low)
    assert (entry.only_first, entry.only_second) == (50, 0) == (turned.only_second, turned.only_first)
    assert headline(results).tone == "good"


def test_without_both_arms_nothing_is_claimed():
    _, results = results_with({"base": 40, "sft_vold": 150})
    assert headline(results).tone == "open" and "SFT + GRPO missing" in headline(results).text


@pytest.fixture
def written(tmp_path):
    answers, results = results_with({"base": 2, "sft": 4, "sft_grpo": 4, "sft_vold": 6}, n=8)
    out = tmp_path / "evaluation"
    (out / "answers").mkdir(parents=True)
    results.write(out / "results.json")
    for arm, rows in answers.items():
        (out / "answers" / f"{arm}.jsonl").write_text(as_lines(rows))
    write_questions(tmp_path / "image.parquet", count=8, images=True)
    run = tmp_path / "outputs" / "vold"
    run.mkdir(parents=True)
    rows = [
        {"step": s, "reward_mean": s / 10, "kl_mean": "nan" if s == 3 else 0.1, "masked_rate": 0.5, "teacher_tokens": 100,
         "seconds": {"generate": 2.0, "teacher": 1.0}, "response_tokens": {"mean": 9.5}, "validation": {"image_accuracy": 0.4}}
        for s in range(1, 6)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '7\n{"loss": 1}\n{"step": 6, "rew')
    (run / "config.yaml").write_text("vold: {steps: 5}\nobjective: {kl: {enabled: true, estimator: k2}}\n")
    config = Config(name="<tiny>", outputs=str(tmp_path / "outputs"))
    config.evaluate.image = DatasetConfig(
        path=str(tmp_path / "image.parquet"), fields=PromptFieldsConfig(image="images")
    )
    config.report = ReportConfig(
        path=str(tmp_path / "report.html"), results=str(out / "results.json"),
        runs={"sft_vold": "vold", "sft_grpo": "gone"}, differences=["β is <other>"], crutches=["cards"],
    )  # fmt: skip
    return write_report(config)


class Balanced(HTMLParser):
    """Every tag that opens closes, in order."""

    void = frozenset({"meta", "img", "line", "rect", "circle", "path", "polyline"})

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_well_formed(written):
    page = Path(written[0]).read_text()
    checker = Balanced()
    checker.feed(page)
    assert checker.open == []
    assert not re.search(r'(src|href)="(?!data:)', page) and "@import" not in page and "<script" not in page
    assert "prefers-color-scheme:dark" in page and "width=device-width" in page
    assert "&lt;tiny&gt;" in page and "<tiny>" not in page and "β is &lt;other&gt;" in page and " &lt;&amp;&gt;" in page


def test_examples_are_the_first_disagreements_and_show_cards_and_every_answer(written):
    page, material = Path(written[0]).read_text(), written[1]
    # SFT and GRPO have 0 to 3 right, VOLD 0 to 5: they disagree on 4 and 5; that the base disagrees on 2 does not count
    assert [e.id for e in material.examples] == [f"image-{i:05d}" for i in (4, 5, 0, 1)]
    assert page.count('src="data:image/png;base64,') == sum(len(e.images) for e in material.examples) >= 16
    assert page.count('class="answer"') == 4 * len(ARMS)


def test_what_is_missing_or_torn_is_said_on_the_page(written):
    page, material = Path(written[0]).read_text(), written[1]
    assert len(material.missing) == 5
    assert "no metrics of sft_grpo" in page and "not JSON was left out" in page
    assert page.count("a line without a step was left out") == 2
    run = material.runs["sft_vold"]
    assert len(run.curve("kl_mean")) == 4, "a NaN is not a point"
    assert run.seconds() == {"generate": 10.0, "teacher": 5.0}
    assert "the teacher scored 500 tokens" in page


def test_a_report_without_results_names_the_recipe_to_run(tmp_path):
    config = Config(name="x")
    config.report = ReportConfig(path=str(tmp_path / "r.html"), results=str(tmp_path / "results.json"))
    with pytest.raises(ConfigError, match=r"recipes/evaluate\.py"):
        write_report(config)


def test_a_benchmark_stands_beside_the_own_questions_with_its_published_scores():
    answers, _ = results_with({"sft_grpo": 100, "sft_vold": 150}, n=160)
    for rows in answers.values():
        right = {int(one.id.rpartition("-")[2]): one.right for one in rows if one.set == "image"}
        rows += [row("mmstar", i, r, subject=f"s{i % 2}", rules=1) for i, r in right.items()]
    results = build_results(answers, {arm: Weights(arm, "ab") for arm in answers}, {})
    html = draw(Config(name="x"), Material(results, {}, [], [], []))
    assert html.count("<svg") == 3 and "MMStar: mean of categories" in html and "93.8%" in html
    assert html.index("Image questions") < html.index("Text questions") < html.index(">MMStar<")
