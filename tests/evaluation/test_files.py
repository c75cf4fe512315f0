"""answers/*.jsonl and results.json: read and written byte for byte, and an error that names the place where they are wrong."""

from __future__ import annotations

import json

import pytest

from tests.evaluation.rows import answer
from vold_nemo.config import ConfigError
from vold_nemo.evaluation.answer_row import as_lines, read_answers
from vold_nemo.evaluation.results import Results, build_results

# Lines as they were written before rows had a type.
PLAIN = (
    '{"set": "text", "id": "test_text-00000", "mode": "greedy", "sample": 0, "question": "please ( one )\\nsolve", '
    '"truth": "3", "text": "1\\u00d79=9\\n\\\\boxed{7}", "extracted": "7", "reward": 0.0, "reason": "differs", '
    '"finish": "stop", "tokens": 23}'
)
JUDGED = (
    '{"set": "mme", "id": "a/b/0", "mode": "sampled", "sample": 1, "question": "\\u25a2 Is it?", "truth": null, "text": '
    '"\\ud800", "extracted": null, "reward": 1.0, "reason": "no answer", "finish": "length", "tokens": 5, "subject": "a", '
    '"type": "yes or no", "skill": "perception", "group": "a/b", "member": "1", "rules": 2, '
    '"rule_reward": 0.0, "judge": "right"}'
)
NEWER = PLAIN.replace('"tokens": 23}', '"tokens": 23, "rules": 1, "seconds": 0.5, "route": ["a", {"b": null}]}')
FILE = f"{PLAIN}\n{JUDGED}\n{NEWER}\n"

ESTIMATE = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
PAIRED = {**ESTIMATE, "only_first": 3, "only_second": 1, "p": 0.625}
COUNTS = {"correct": 4, "no_answer": 1, "truncated": 0, "tokens_mean": 9.5}
RESULTS = {
    "accuracy": {
        "sft": {"text": {**ESTIMATE, **COUNTS, "sampled": None}},
        "sft_vold": {
            "text": {**ESTIMATE, **COUNTS, "sampled": {**ESTIMATE, "samples": 2}},  # before pass@k was there
            "mmstar": {
                **ESTIMATE, **COUNTS, "sampled": {**ESTIMATE, "samples": 2, "pass": {"2": ESTIMATE}},
                "by": {"subject": {"math": ESTIMATE}}, "own": {"mean_of_categories": 0.5}, "judged": {"right": 1, "failed": 2},
            },
        },
    },
    "differences": {
        "text": [{"first": "sft_vold", "second": "sft", **PAIRED, "sampled": {**PAIRED, "p": None}}],
        "mmstar": [{"first": "sft_vold", "second": "sft", **PAIRED, "sampled": None}],
    },
    "models": {"sft": {"path": "a/hf", "weights": "ab"}, "sft_vold": {"path": "b/hf", "weights": "cd"}},
    "settings": {"max_tokens": 40, "vllm": None, "questions": {"text": "text.jsonl"}},
}  # fmt: skip


def changed(data: dict, path: str, value: object) -> dict:
    """``data`` with another value at ``a/b/0``, or without the key where it is ``...``."""
    data = json.loads(json.dumps(data))
    *way, last = path.split("/")
    place = data
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


def test_answers_are_written_as_they_were_read_with_what_a_newer_version_added(tmp_path):
    (tmp_path / "a.jsonl").write_text(FILE)
    rows = read_answers(tmp_path / "a.jsonl")
    assert as_lines(rows) == FILE
    assert [row.right for row in rows] == [False, True, False] and rows[1].judge == "right" and rows[0].rules is None
    assert rows[2].more == {"seconds": 0.5, "route": ["a", {"b": None}]}
    assert read_answers(tmp_path / "none.jsonl") == []


def test_results_are_written_as_they_were_read_with_what_a_newer_version_added(tmp_path):
    newer = changed(changed(RESULTS, "accuracy/sft/text/seconds", 0.5), "seeds", [1, 2])
    for data in (RESULTS, newer):
        text = json.dumps(data, indent=1) + "\n"
        (tmp_path / "results.json").write_text(text)
        found = Results.of_file(tmp_path / "results.json")
        found.write(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_text() == text
    assert found.accuracy["sft_vold"]["mmstar"].sampled.passed["2"].value == 0.5
    assert found.accuracy["sft"]["text"].more == {"seconds": 0.5} and found.more == {"seeds": [1, 2]}


def test_what_is_built_has_the_keys_of_the_file(tmp_path):
    asked = [("greedy", 0), ("sampled", 0), ("sampled", 1)]
    answers = {
        arm: [answer(right, mode=mode, sample=i, rules=2, skill="reasoning") for mode, i in asked]
        for arm, right in (("sft", False), ("sft_vold", True))
    }
    data = build_results(answers, {}, {}).to_json()
    entry = data["accuracy"]["sft"]["text"]
    assert list(entry) == [*ESTIMATE, *COUNTS, "sampled", "by"] and list(entry["sampled"]) == [*ESTIMATE, "samples", "pass"]
    assert list(data["differences"]["text"][0]) == ["first", "second", *PAIRED, "sampled"]
    assert list(data) == list(RESULTS) and Results.from_json(data, "here").to_json() == data


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("reward", ..., r"a\.jsonl, line 3: reward = None(.|\n)*a finite number(.|\n)*missing"),
        ("reward", "1", r"line 3: reward = '1'"),
        ("reward", True, r"line 3: reward = True"),
        ("reward", float("nan"), r"line 3: reward = nan"),
        ("extracted", 3, r"line 3: extracted = 3\n  allowed: text"),
        ("text", None, r"line 3: text = None"),
        ("mode", "hot", r"line 3: mode = 'hot'\n  allowed: greedy \| sampled"),
        ("tokens", 2.5, r"line 3: tokens = 2.5\n  allowed: a whole number"),
        ("rules", "two", r"line 3: rules = 'two'"),
    ],
)
def test_an_answer_that_is_none_is_named_with_its_line_and_key(tmp_path, path, value, says):
    wrong = changed(json.loads(PLAIN), path, value)
    (tmp_path / "a.jsonl").write_text(f"{PLAIN}\n{JUDGED}\n{json.dumps(wrong)}\n")
    with pytest.raises(ConfigError, match=says):
        read_answers(tmp_path / "a.jsonl")


@pytest.mark.parametrize("line", ["[1]", "{", '{"set": "te', "\x00"])
def test_a_line_that_is_no_object_is_named_and_a_torn_end_is_left_out_only_where_it_is_allowed(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f"{PLAIN}\n{line}\n")
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2 = "):
        read_answers(tmp_path / "a.jsonl")
    if line != "[1]":
        assert len(read_answers(tmp_path / "a.jsonl", torn=True)) == 1
    (tmp_path / "a.jsonl").write_bytes(PLAIN.encode() + b"\n\xff\xfe{\n")
    with pytest.raises(ConfigError, match=r"line 2 = "):
        read_answers(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("accuracy", ..., r"results\.json: accuracy = None\n  allowed: an object"),
        ("accuracy", [], r"results\.json: accuracy = \[\]"),
        ("accuracy/sft", 3, r"accuracy\.sft = 3\n  allowed: an object"),
        ("accuracy/sft/text", None, r"accuracy\.sft\.text = None"),
        ("accuracy/sft/text/value", ..., r"accuracy\.sft\.text: value = None(.|\n)*missing"),
        ("accuracy/sft_vold/mmstar/by/subject/math/low", "x", r"accuracy\.sft_vold\.mmstar: by\.subject\.math: low = 'x'"),
        ("accuracy/sft_vold/mmstar/sampled/pass/2/n", 1.5, r"sampled: pass\.2: n = 1\.5"),
        ("differences/text/0/first", ..., r"differences\.text\[0\]: first"),
        ("differences/text/0/p", "<script>", r"differences\.text\[0\]: p = '<script>'"),
        ("models/sft/weights", ..., r"models\.sft: weights"),
    ],
)  # fmt: skip
def test_results_that_are_wrong_are_named_with_their_key(tmp_path, path, value, says):
    (tmp_path / "results.json").write_text(json.dumps(changed(RESULTS, path, value)))
    with pytest.raises(ConfigError, match=says):
        Results.of_file(tmp_path / "results.json")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"results\.json = (.|\n)*JSON"):
        Results.of_file(tmp_path / "results.json")
