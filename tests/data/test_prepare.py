"""Duplicates and evaluation questions leave the training prompts, and the report says which and why."""

import dataclasses
import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from vold_nemo.config import (
    Config,
    ConfigError,
    DataConfig,
    DatasetConfig,
    PrepareConfig,
    PromptFieldsConfig,
    TracesConfig,
)
from vold_nemo.config.compose import HydraArguments, compose
from vold_nemo.data.overlap import EvaluationTable, normalised, question_key, question_text
from vold_nemo.data.prepare import prepare, summary
from vold_nemo.data.prompts import Prompt, Wanted, load_prompts, read_prompts
from vold_nemo.data.rejected import Rejected

FIXTURES = Path(__file__).parent / "fixtures"
EVALUATION = "A farmer has seventeen sheep and buys three times as many goats as sheep. How many animals are there now?"


def ask(text, images=()):
    return Prompt("0", [{"role": "system", "content": "Think."}, {"role": "user", "content": text}], images=list(images))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Find  $x$ .", "find x", True),
        ("2 \\sqrt { 221 }", "2\\sqrt{221}", True),
        ("\\left( \\dfrac{1}{2}\\right)", "(\\frac{1}{2})", True),
        ("ﬁnd x²", "find x2", True),  # NFKC
        ("x + 1", "x - 1", False),
        ("1 2", "12", False),
        ("a < b", "a > b", False),
        ("\\leftarrow x", "\\rightarrow x", False),
    ],
)
def test_typesetting_does_not_make_a_question_and_signs_do(first, second, same):
    assert (normalised(first) == normalised(second)) is same
    assert (question_key(ask(first)) == question_key(ask(second))) is same


def brute_force(train: str, evaluation: str, n: int) -> bool:
    words = [[w.lower() for w in text.split()] for text in (train, evaluation)]
    runs = [{tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in words]
    return bool(runs[0] & runs[1])


def test_a_shared_run_of_words_is_found_exactly_where_brute_force_finds_one():
    rng = random.Random(0)
    vocabulary = [f"w{name}" for name in "abcdefghijkl"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(3, 40))) for _ in range(160)]
    for n in (3, 5):
        table = EvaluationTable(n, common=1000, share=1e-9)  # any run at all
        table.add("test", [ask(text) for text in texts[:6]])
        table.close()
        hits = [table.match(text, question_key(ask(text))) is not None for text in texts[6:]]
        assert hits == [any(brute_force(text, other, n) for other in texts[:6]) for text in texts[6:]]
        assert 0 < sum(hits) < len(hits)


def test_a_phrase_of_many_evaluation_questions_gives_nothing_away():
    phrase = "round your answer to the nearest tenth if necessary and give no unit at all"
    table = EvaluationTable(13, common=3, share=0.5)
    table.add("test", [ask(f"question number {name} {phrase}") for name in "abcd"])
    table.close()
    text = f"something else entirely {phrase}"
    assert table.match(text, question_key(ask(text))) is None and table.phrases > 0
    text = f"a question number b {phrase}"  # with three words of the question itself, the run is rare
    match = table.match(text, question_key(ask(text)))
    assert (match.kind, match.id) == ("13-gram", "0") and match.words.startswith("question number b round your answer")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path):
    rows = [
        {"id": "a", "prompt": "1 + 1 = ?", "answer": "2", "source": "sums"},
        {"id": "b", "prompt": "1+1=?", "answer": "2", "source": "sums"},
        {"id": "c", "prompt": " 1 + 1 = ? ", "answer": "3", "source": "other"},
        {"id": "d", "prompt": "1 - 1 = ?", "answer": "0", "source": "other"},
        {"id": "e", "prompt": "A farmer has seventeen sheep and buys three times as many goats as sheep. How old is he?",
         "answer": "40", "source": "other"},
        {"id": "f", "prompt": "solve NOW", "answer": "7", "source": "sums"},
        {"id": "g", "prompt": "2 + 2 = ?", "source": "sums"},
        {"id": "h", "prompt": "2 + 3 = ?", "answer": "\\frac{5", "source": "sums"},
    ]  # fmt: skip
    held_out = [{"prompt": EVALUATION, "answer": "68"}, {"prompt": "Solve now.", "answer": "1"}]
    return Config(
        outputs=str(tmp_path),
        data=DataConfig(
            prompts=DatasetConfig(write(tmp_path / "train.jsonl", rows), fields=PromptFieldsConfig(source="source")),
            max_rejected_share=0.5,
        ),
        prepare=PrepareConfig(
            against={"farm": DatasetConfig(write(tmp_path / "farm.jsonl", held_out))}, path=str(tmp_path / "clean")
        ),
    )  # fmt: skip


def test_what_stays_is_new_and_what_went_is_named_with_its_reason(config, tmp_path):
    report = prepare(config)
    left = report["sets"]["prompts"]
    assert (left["rows"], left["duplicates"], left["conflicting"], left["kept"]) == (8, 2, 1, 2)
    assert left["contaminated"] == {"farm": {"8-gram": 1, "exact": 1}}
    assert left["bad"] == {"answer: missing": 1, "answer: verifier boxed cannot parse it": 1}
    assert left["sources"] == {"sums": {"read": 3, "kept": 1}, "other": {"read": 3, "kept": 1}}
    assert report["evaluation"]["farm"] == {"questions": 2, "short": 1}
    assert json.loads((tmp_path / "clean" / "report.json").read_text()) == json.loads(json.dumps(report))
    went = [json.loads(line) for line in (tmp_path / "clean" / "rejected.jsonl").read_text().splitlines()]
    assert {line["row"]: line["reason"].split(":")[0] for line in went} == {
        "b": "duplicate of a", "c": "duplicate of a", "e": "8-gram match with farm 0 (72% of its words)",
        "f": "exact match with farm 1",
        6: "answer", 7: "answer",
    }  # fmt: skip
    assert "2 of farm: 8-gram 1, exact 1" in summary(report)


def test_what_was_written_is_read_by_data_prepared(config, tmp_path):
    prepare(config)
    given = ["data=prepared", f"prepare.path={tmp_path / 'clean'}"]
    data = compose(given).data
    prompts = load_prompts(data.prompts, data.system_prompt, Rejected(None, 0.0))
    assert [(p.id, p.answer, p.source) for p in prompts] == [("a", "2", "sums"), ("d", "0", "other")]
    assert [m["role"] for m in prompts[0].messages] == ["system", "user"]  # neither was written into the file
    again = dataclasses.replace(config, data=data)
    with pytest.raises(ConfigError, match="as it was published"):
        prepare(again)


def test_a_sets_own_traces_are_kept_and_only_equal_ones_are_duplicates(config, tmp_path):
    turns = [("q", "<think>a</think>1"), ("q", "<think>b</think>1"), ("Q", "<think>a</think>1")]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": r}]} for q, r in turns]
    traces = DatasetConfig(write(tmp_path / "mot.jsonl", rows), fields=PromptFieldsConfig(prompt="messages"))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, trace_prompts=traces), traces=TracesConfig(engine="dataset"),
    )  # fmt: skip
    assert prepare(config)["sets"]["trace_prompts"]["kept"] == 2
    kept = compose(["data=prepared", f"prepare.path={tmp_path / 'clean'}"]).data.trace_prompts
    prompts = list(read_prompts(kept, Rejected(None, 0.0), Wanted(answers=False, responses=True)))
    assert [p.response for p in prompts] == [turns[0][1], turns[1][1]]
    elsewhere = dataclasses.replace(config.prepare, path=str(tmp_path / "t"))
    teacher = dataclasses.replace(config, traces=TracesConfig(), prepare=elsewhere)
    assert prepare(teacher)["sets"]["trace_prompts"]["kept"] == 1  # the teacher would answer the same prompt again


def test_find_x_under_two_figures_is_two_questions_and_images_are_kept(config, tmp_path):
    fields = PromptFieldsConfig(prompt="problem", image="images", id=None)
    figures = [DatasetConfig(str(FIXTURES / "geometry3k" / "data"), split=s, fields=fields) for s in ("train", "test")]
    config = dataclasses.replace(
        config, data=DataConfig(prompts=figures[0]), prepare=dataclasses.replace(config.prepare, against={"geo": figures[1]})
    )
    report = prepare(config)
    assert report["sets"]["prompts"]["kept"] == 2
    read = DatasetConfig(report["sets"]["prompts"]["written"], fields=PromptFieldsConfig(image="images"))
    before, after = (load_prompts(dataset, None, Rejected(None, 0.0)) for dataset in (figures[0], read))
    assert [question_text(p) for p in after] == [question_text(p) for p in before] == ["Find x.", "Find x."]
    assert [p.images for p in after] == [p.images for p in before]
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28)).save(buffer, format="PNG")
    assert question_key(ask("Find x.", [buffer.getvalue()])) != question_key(ask("Find x."))


def test_evaluation_sets_are_named_on_the_command_line(tmp_path):
    given = HydraArguments.parse(["prepare.against.math500.path=a.jsonl", "prepare.against.math500.fields.prompt=problem"])
    found = compose(given.overrides).prepare.against["math500"]
    assert (found.path, found.fields.prompt, found.split) == ("a.jsonl", "problem", "train")
