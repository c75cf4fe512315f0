"""Boilerplate is no contamination, and a question that was set, numbered or framed otherwise is the same question."""

import itertools
import json

import pytest

from tests.data.contamination_cases import CLEAN, CONTAMINATED, EVALUATION, FARM, LADDER, PRIME
from vold_nemo.config import Config, DataConfig, DatasetConfig, PrepareConfig
from vold_nemo.data.overlap import EvaluationTable, question_key
from vold_nemo.data.prepare import prepare
from vold_nemo.data.prompts import Prompt
from vold_nemo.data.words import numbered, placed, words
from vold_nemo.pages import contamination


def ask(text: str, name: str = "0") -> Prompt:
    return Prompt(name, [{"role": "user", "content": text}])


def table(questions: dict[str, str] = EVALUATION, *, common: int = 10, numbers: str = "any") -> EvaluationTable:
    found = EvaluationTable(8, common, 0.5, numbers)
    found.add("test", [ask(text, name) for name, text in questions.items()])
    found.close()
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac{m}{n}", "m/n"), (r"$\left( x_1 \right)$", "(x_{1})"), (r"1{,}000 and 1\,000", "1000 and 1,000"),
        (r"\theta \leq \pi", "θ ≤ π"), ("x² + 2x", "x^2+2 x"), ("seventeen", "17"), ("Twenty-five red", "25 red"),
        (r"\overline{AB} \perp \text{CD}", "AB ⊥ CD"), ("ﬁnd", "find"), ("３ 羊", "3羊"),
    ],
)  # fmt: skip
def test_words_are_the_same_however_they_are_set(one, other):
    assert words(one) == words(other)
    assert [word for word, *_ in placed(one)] == words(one)


def test_places_are_those_of_the_text_as_it_stands():
    text = r"Ａ farmer has \textbf{seventeen} 羊, $x_1$ ≤ 1{,}000."
    found = [(word, text[start:end]) for word, start, end in placed(text)]
    assert found[:-1] == [("a", "Ａ"), ("farmer", "farmer"), ("has", "has"), ("#", "seventeen"), ("羊", "羊"), ("x", "x")]
    assert found[-1] == ("#", r"1$ ≤ 1{,}000")  # numbers in a row are one word


def test_numbers_in_words_are_those_in_figures():
    assert numbered("twenty-five of 1,000 and three") == ["25", "of", "1000", "and", "3"]
    assert numbered("twenty 5, forty two") == ["20", "5", "42"]


@pytest.mark.parametrize(("prompt", "name", "kind"), CONTAMINATED, ids=range(len(CONTAMINATED)))
def test_a_question_is_found_however_it_is_written(prompt, name, kind):
    match = table().match(prompt, question_key(ask(prompt)))
    assert match is not None and match.id == name
    assert match.kind.replace("8-gram", "n-gram") == kind
    for text, spans in ((prompt, match.in_prompt), (EVALUATION[name], match.in_question)):
        assert spans and all(0 <= start < end <= len(text) for start, end in spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    shared = [words(" ".join(text[a:b] for a, b in spans)) for text, spans in
              ((prompt, match.in_prompt), (EVALUATION[name], match.in_question))]  # fmt: skip
    assert set(shared[0]) & set(shared[1])


@pytest.mark.parametrize("prompt", CLEAN, ids=range(len(CLEAN)))
def test_what_shares_a_phrase_alone_is_kept(prompt):
    assert table().match(prompt, question_key(ask(prompt))) is None


def test_a_phrase_of_many_prompts_does_not_count_even_where_it_is_most_of_a_question():
    short = {"short": f"The probability is $\\frac{{m}}{{n}}$, {PRIME}"}
    prompts = [f"Number {name} of the game. The odds are written $\\frac{{m}}{{n}}$, {PRIME}" for name in "abcdefghijkl"]
    few, many = table(short), table(short)
    assert few.learn_phrases(prompts[:5]) == 0 and many.learn_phrases(prompts) > 0
    assert few.match(prompts[0], b"") is not None, "without the training set, this is what cannot be told"
    assert many.match(prompts[0], b"") is None
    assert many.match(f"Exercise 3. {short['short']}", b"").share == 1, "a question that stands there whole is found"


def test_a_question_that_was_copied_often_is_no_phrase():
    copies = [f"{i}. {FARM} (variant {name})" for i, name in enumerate("abcdefghijklmnop")]
    found = table()
    assert found.learn_phrases(copies) == 0
    assert found.match(copies[3], b"").id == "farm"


def test_other_numbers_can_make_another_question():
    other = FARM.replace("seventeen", "23").replace("three", "four")
    assert table(numbers="any").match(other, b"").kind == "other numbers"
    assert table(numbers="same").match(other, b"") is None
    assert table(numbers="same").match(f"2. {FARM.replace('seventeen', '17')}", b"").kind == "8-gram"


def test_the_pairs_are_written_with_the_words_that_they_share(tmp_path):
    framed = f"<b>7.</b> {LADDER} Show your work."
    rows = [{"prompt": text, "answer": "1"} for text in (framed, CLEAN[0])]
    for name, content in (("train", rows), ("test", [{"prompt": LADDER, "answer": "25"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    config = Config(
        outputs=str(tmp_path), data=DataConfig(prompts=DatasetConfig(str(tmp_path / "train.jsonl"))),
        prepare=PrepareConfig(against={"ours": DatasetConfig(str(tmp_path / "test.jsonl"))}, path=str(tmp_path / "clean")),
    )  # fmt: skip
    report = prepare(config)
    assert report["sets"]["prompts"]["contaminated"] == {"ours": {"8-gram": 1}} and report["sets"]["prompts"]["kept"] == 1
    (pair,) = contamination.pairs(config.prepare.path)
    assert pair["prompt"] == framed and pair["question"] == LADDER
    assert [framed[a:b] for a, b in pair["in_prompt"]] == [LADDER.rstrip("$.")]
    page = contamination.write(config.prepare.path, report).read_text()
    assert "&lt;b&gt;7.&lt;/b&gt;" in page and "<mark>A ladder of length 13 leans" in page
    assert any(line.startswith("  question ⟦A ladder of") for line in contamination.in_words(config.prepare.path))
    prepare(config)
    assert len(list(contamination.pairs(config.prepare.path))) == 1, "a second run begins the file anew"
