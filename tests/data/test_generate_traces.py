"""The recipe that lets the teacher answer: complete, droppable, resumable, divisible."""

import dataclasses
import json

import pytest

from recipes import generate_traces
from vold_nemo.config import Config, ConfigError, DataConfig, DatasetConfig, StudentConfig, TeacherConfig, TracesConfig
from vold_nemo.miniature.random_models import write_questions, write_random_teacher
from vold_nemo.rollout.transformers_engine import TransformersEngine

COUNT, BATCH, LIMIT = 11, 3, 24


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return write_random_teacher(root / "teacher"), write_questions(root / "questions.jsonl", count=COUNT)


@pytest.fixture
def config(world, tmp_path):
    teacher, questions = world
    return Config(
        seed=7, device="cpu", precision="fp32",
        student=StudentConfig(path="unused"), teacher=TeacherConfig(path=str(teacher)),
        data=DataConfig(trace_prompts=DatasetConfig(path=str(questions))),
        traces=TracesConfig(path=str(tmp_path / "traces.jsonl"), samples_per_prompt=2, max_tokens=LIMIT, batch=BATCH),
    )  # fmt: skip


def run(config, **changes):
    config = dataclasses.replace(config, traces=dataclasses.replace(config.traces, **changes))
    generate_traces.main.__wrapped__(config)


def rows(folder):
    return [json.loads(line) for path in sorted(folder.glob("traces*.jsonl")) for line in path.read_text().splitlines()]


def test_every_prompt_and_sample_has_a_line_that_says_where_it_came_from(config, tmp_path, capsys):
    run(config)
    lines = rows(tmp_path)
    assert [(line["id"], line["sample"]) for line in lines] == [(f"text-{i:05d}", k) for i in range(COUNT) for k in (0, 1)]
    kept = [line for line in lines if line["finish"] == "stop"]
    assert 0 < len(kept) < len(lines)  # a random teacher does both
    assert all(line["response_ids"] is None and line["response_tokens"] == LIMIT for line in lines if line not in kept)
    assert all(len(line["response_ids"]) == line["response_tokens"] <= LIMIT for line in kept)
    assert lines[0]["sampling"] == {"temperature": 1.0, "max_tokens": LIMIT}
    assert (lines[0]["seed"], lines[0]["teacher"], lines[0]["thinking"]) == (7, config.teacher.path, False)
    printed = capsys.readouterr().out
    assert f"{len(kept)} traces of {COUNT} prompts, {len(lines) - len(kept)} dropped at {LIMIT} tokens" in printed


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(config, tmp_path, monkeypatch, killed_after):
    run(config)
    straight = (tmp_path / "traces.jsonl").read_bytes()
    (tmp_path / "traces.jsonl").unlink()

    calls, generate = [], TransformersEngine.generate

    def mortal(engine, *args, **options):
        if len(calls) == killed_after:
            raise KeyboardInterrupt
        calls.append(1)
        return generate(engine, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TransformersEngine, "generate", mortal)
        run(config)
    written = (tmp_path / "traces.jsonl").read_bytes()
    assert straight.startswith(written) and written.count(b"\n") == killed_after * BATCH * 2
    (tmp_path / "traces.jsonl").write_bytes(written + straight[len(written) :][:100])  # and a line is torn
    run(config)
    assert (tmp_path / "traces.jsonl").read_bytes() == straight


def test_a_finished_run_does_not_load_the_teacher_again(config, monkeypatch):
    run(config)
    monkeypatch.setattr(generate_traces, "build_engine", lambda *args: pytest.fail("the teacher was loaded"))
    run(config)


def test_shards_make_the_traces_of_one_whole_run(config, tmp_path):
    run(config)
    whole = rows(tmp_path)
    (tmp_path / "traces.jsonl").unlink()
    for shard in range(3):
        run(config, shard=shard, shards=3)
    divided = rows(tmp_path)
    key = lambda row: (row["id"], row["sample"])  # noqa: E731
    assert sorted(divided, key=key) == sorted(whole, key=key)


def test_tasks_of_a_job_step_take_a_shard_each(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        run(config)
    assert sorted(path.name for path in tmp_path.glob("traces*")) == ["traces.0-of-2.jsonl", "traces.1-of-2.jsonl"]
    assert len(rows(tmp_path)) == COUNT * 2


# Qwen3's own way: without thinking, the template itself opens and closes an empty thought.
CLOSED = "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"


@pytest.mark.parametrize("thinking", [False, True])
def test_a_teacher_thinks_or_not_by_its_template(config, world, tmp_path, monkeypatch, thinking):
    """The prompt is transformers' rendering of the switch, the traces say which; a thought reaches a student that adopts it."""
    import shutil

    from transformers import AutoTokenizer

    from vold_nemo.data.adoption import adopt
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.traces import load_traces
    from vold_nemo.miniature.tokenizer import CHAT_TEMPLATE, ID, build_tokenizer

    teacher = tmp_path / "qwen3"
    shutil.copytree(world[0], teacher)
    for old in teacher.glob("chat_template*"):
        old.unlink()
    ending = CHAT_TEMPLATE.rindex("{%- endif -%}")
    (teacher / "chat_template.jinja").write_text(CHAT_TEMPLATE[:ending] + CLOSED + CHAT_TEMPLATE[ending:])
    asked, generate = [], TransformersEngine.generate

    def thoughtful(engine, prompts, sampling, **options):
        """What a thinking teacher does with an open turn; a closed one is answered."""
        asked.extend(prompts)
        answers = generate(engine, prompts, sampling, **options)
        if not thinking:
            return answers
        return [dataclasses.replace(a, ids=[55, 40, 56, ID["<|im_end|>"]], finish_reason="stop") for a in answers]

    monkeypatch.setattr(TransformersEngine, "generate", thoughtful)
    run(dataclasses.replace(config, teacher=TeacherConfig(path=str(teacher), thinking=thinking)))
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    lines = rows(tmp_path)
    expected = [
        tokenizer.apply_chat_template(line["messages"], add_generation_prompt=True, enable_thinking=thinking, return_dict=False)
        for line in lines[:: config.traces.samples_per_prompt]
    ]
    assert [prompt.ids for prompt in asked] == expected
    newline = ID["\n"]
    closed = [55, newline, newline, 56, newline, newline]
    assert all((ids[-6:] == closed) is not thinking for ids in expected)
    assert {line["thinking"] for line in lines} == {thinking}
    if thinking:
        student = build_tokenizer()
        options = dict(max_length=99, rejected=Rejected(None, 0.0), end_ids=[ID["<|im_end|>"]])
        with pytest.raises(ConfigError, match="22 with ids that the student lacks"):
            load_traces(config.traces.path, student, shared=[True] * 53, **options)
        adopt(student, 60, tokenizer)
        examples, counts = load_traces(config.traces.path, student, **options)
        assert counts.kept == 22 and counts.origins[0]["thinking"] is True
        assert examples[0].ids[examples[0].prompt_length :].tolist() == [55, 40, 56, ID["<|im_end|>"]]
