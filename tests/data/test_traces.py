"""Traces on disk and in stage 1: nothing is verified, nothing is lost, nothing is answered twice."""

import json

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.templates import render_prompt
from vold_nemo.data.traces import TraceWriter, load_traces, shard_path, shared_otherwise
from vold_nemo.miniature.tokenizer import ENDOFTEXT, ID, IM_END, build_tokenizer

MESSAGES = [{"role": "user", "content": "( six ) ( plus four )\nsolve"}]
ANSWER = [ID[token] for token in "6+4=0"]
SETTINGS = {"teacher": "t", "seed": 1}
ENDS = (ID[ENDOFTEXT], ID[IM_END])


def trace(name="a", ids=(*ANSWER, ID[IM_END]), sample=0, **changes):
    row = {"id": name, "sample": sample, "messages": MESSAGES, "response": "x", "response_ids": list(ids), "finish": "stop"}
    return {**row, **changes}


DROPPED = {"response": None, "response_ids": None, "finish": "length"}


def read(path, tmp_path, max_length=64, share=1.0, **options):
    rejected = Rejected(tmp_path / "rejected.jsonl", share)
    return load_traces(path, build_tokenizer(), max_length=max_length, rejected=rejected, end_ids=ENDS, **options), rejected


def write(path, *rows):
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


def test_an_example_is_the_students_prompt_and_the_teachers_ids(tmp_path):
    ((example,), counts), _ = read(write(tmp_path / "t.jsonl", trace()), tmp_path)
    prompt = render_prompt(build_tokenizer(), MESSAGES)
    assert example.ids.tolist() == [*prompt, *ANSWER, ID[IM_END]]
    assert (example.prompt_length, example.response_length, example.name) == (len(prompt), 6, "a/0")
    assert (counts.kept, counts.response_tokens) == (1, 6)


def test_a_wrong_answer_stays_because_no_trace_is_verified(tmp_path):
    wrong = [ID[token] for token in "6+4=9"]
    ((example,), _), _ = read(write(tmp_path / "t.jsonl", trace(ids=[*wrong, ID[IM_END]], answer="0")), tmp_path)
    assert example.ids.tolist()[-6:-1] == wrong


def test_an_answer_without_an_end_the_student_knows_gets_its_own(tmp_path):
    path = write(tmp_path / "t.jsonl", trace(ids=ANSWER), trace("b", ids=[*ANSWER, ID[ENDOFTEXT]]))
    (first, second), _ = read(path, tmp_path)[0]
    assert first.ids[-1] == ID[IM_END]
    assert second.ids[-1] == ID[ENDOFTEXT]


def test_truncated_too_long_and_foreign_traces_are_dropped_and_counted(tmp_path):
    length = len(render_prompt(build_tokenizer(), MESSAGES)) + 6
    foreign = [55, *ANSWER, ID[IM_END]]  # <think>, which only the teacher has
    long = [*ANSWER, *ANSWER, ID[IM_END]]
    path = write(tmp_path / "t.jsonl", trace(), trace("b", **DROPPED), trace("c", ids=long), trace("d", ids=foreign))
    (examples, counts), _ = read(path, tmp_path, max_length=length)
    assert [example.name for example in examples] == ["a/0"]
    assert (counts.lines, counts.kept, counts.truncated, counts.too_long, counts.foreign) == (4, 1, 1, 1, 1)
    assert "1 truncated, 1 too long, 1 with ids that the student lacks" in counts.describe()


def test_a_student_that_shares_the_teachers_extra_ids_keeps_them(tmp_path):
    path = write(tmp_path / "t.jsonl", trace(ids=[55, *ANSWER, ID[IM_END]]))
    assert read(path, tmp_path, shared=[True] * 64)[0][1].kept == 1
    with pytest.raises(ConfigError, match=r"teacher\.thinking=false"):
        read(path, tmp_path, shared=[i < 53 for i in range(64)])


BROKEN = {
    "not JSON": b'{"id": "a", "samp\n',
    "id: missing or not str": trace(id=7),
    "messages: missing or not list": trace(messages=None),
    "response_ids: not a list of ids": trace(ids=[1, 2.5]),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_line_is_rejected_with_its_reason(tmp_path, reason):
    (examples, _), rejected = read(write(tmp_path / "t.jsonl", trace(), BROKEN[reason], trace("b")), tmp_path)
    assert (len(examples), rejected.summary()) == (2, f"{reason} 1")
    with pytest.raises(ConfigError, match="1 of 3 rows rejected"):
        read(tmp_path / "t.jsonl", tmp_path, share=0.05)


def test_shards_are_read_together_and_a_missing_one_is_named(tmp_path):
    for shard in range(3):
        write(shard_path(tmp_path / "t.jsonl", shard, 3), trace(str(shard)))
    (examples, _), _ = read(tmp_path / "t.jsonl", tmp_path)
    assert [example.name for example in examples] == ["0/0", "1/0", "2/0"]
    shard_path(tmp_path / "t.jsonl", 1, 3).unlink()
    with pytest.raises(ConfigError, match=r"t\.1-of-3\.jsonl"):
        read(tmp_path / "t.jsonl", tmp_path)
    with pytest.raises(ConfigError, match="generate_traces"):
        read(tmp_path / "none.jsonl", tmp_path)


def test_a_set_that_was_shared_out_otherwise_is_read_once_and_not_answered_again(tmp_path):
    whole = tmp_path / "t.jsonl"
    with TraceWriter(whole, SETTINGS) as writer:
        writer.write([trace("a"), trace("b")])
    told = []
    for shard, name in enumerate("cd"):
        file = shard_path(whole, shard, 2)
        with TraceWriter(file, SETTINGS, told.append, others=shared_otherwise(whole, 2), mine={"a"}) as writer:
            assert {("a", 0), ("b", 0)} <= writer.done
            writer.write([trace(name)] if shard else [trace(name), trace("a")])
    assert [row["id"] for row in told] == ["a", "c", "a", "a", "d"]
    (examples, counts), _ = read(whole, tmp_path)
    assert [example.name for example in examples] == ["a/0", "b/0", "c/0", "d/0"] and counts.lines == 4
    assert shared_otherwise(whole, 1) == [shard_path(whole, shard, 2) for shard in range(2)]
    with pytest.raises(ConfigError, match=r"t\.jsonl was begun"):
        TraceWriter(shard_path(whole, 0, 3), {**SETTINGS, "seed": 99}, others=shared_otherwise(whole, 3))
    shard_path(whole, 0, 3).write_bytes(b"")  # three shards, begun and given up
    with pytest.raises(ConfigError, match=r"t\.1-of-3\.jsonl"):
        read(whole, tmp_path)


def test_a_torn_last_line_is_cut_off_and_its_trace_is_open_again(tmp_path):
    path = tmp_path / "t.jsonl"
    with TraceWriter(path, SETTINGS) as writer:
        writer.write([trace("a"), trace("b", **DROPPED)])
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(trace("c")).encode()[:-20])
    with TraceWriter(path, SETTINGS) as writer:
        assert (writer.done, writer.dropped) == ({("a", 0), ("b", 0)}, 1)
        writer.write([trace("c")])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_a_line_broken_inside_the_file_stops_the_writer_and_loses_nothing(tmp_path):
    whole = [{**trace(name), **SETTINGS} for name in "ab"]
    path = write(tmp_path / "t.jsonl", whole[0], b'{"id": "x"\n', whole[1])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="line 2"):
        TraceWriter(path, SETTINGS)
    assert path.read_bytes() == before


def test_a_file_made_with_other_settings_or_by_two_processes_is_refused(tmp_path):
    with TraceWriter(tmp_path / "t.jsonl", SETTINGS) as writer:
        writer.write([trace()])
        with pytest.raises(ConfigError, match="no other process"):
            TraceWriter(tmp_path / "t.jsonl", SETTINGS)
    with pytest.raises(ConfigError, match="trace setting seed = 2"):
        TraceWriter(tmp_path / "t.jsonl", {**SETTINGS, "seed": 2})
