"""The recipe that lets the teacher answer: complete, droppable, resumable, divisible."""

import dataclasses
import json
import sys
import types

import pytest

from recipes import generate_traces
from vold_nemo.config import (
    Config,
    ConfigError,
    DataConfig,
    DatasetConfig,
    PromptFieldsConfig,
    RewardConfig,
    StudentConfig,
    TeacherConfig,
    TracesConfig,
)
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.templates import load_tokenizer
from vold_nemo.data.traces import load_traces
from vold_nemo.miniature.random_models import write_questions, write_random_teacher
from vold_nemo.models import trace_engine
from vold_nemo.rollout import tracing
from vold_nemo.rollout.transformers_engine import TransformersEngine
from vold_nemo.rollout.vllm_teacher import devices_of

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
    monkeypatch.setattr(trace_engine, "on_transformers", lambda *args: pytest.fail("the teacher was loaded"))
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
    assert sorted(path.name for path in tmp_path.glob("traces*.jsonl")) == ["traces.0-of-2.jsonl", "traces.1-of-2.jsonl"]
    assert len(rows(tmp_path)) == COUNT * 2


# Qwen3's own way: without thinking, the template itself opens and closes an empty thought.
CLOSED = "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"


@pytest.mark.parametrize("thinking", [False, True])
def test_a_teacher_thinks_or_not_by_its_template(config, world, tmp_path, monkeypatch, thinking):
    """The prompt is transformers' rendering of the switch, the traces say which; a thought reaches a student that adopts it."""
    import shutil

    from transformers import AutoTokenizer

    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.traces import load_traces
    from vold_nemo.megatron.adoption import adopt
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


class Engine:
    """vLLM's engine, as far as traces use it: each step one of the open requests ends, the newest first."""

    def __init__(self, dies_after=None):
        self.open, self.most, self.dies_after, self.requests = {}, 0, dies_after, []

    def add_request(self, name, prompt, parameters):
        assert set(prompt) == {"prompt_token_ids"} and name not in self.open
        self.open[name] = (prompt["prompt_token_ids"], parameters)
        self.requests.append((name, parameters.seed))
        self.most = max(self.most, len(self.open))

    def step(self):
        if self.dies_after == 0:
            raise KeyboardInterrupt
        self.dies_after = None if self.dies_after is None else self.dies_after - 1
        name = list(self.open)[-1]
        ids, parameters = self.open.pop(name)
        stops = len(ids) % 3 > 0
        answer = [*ids[:4], parameters.stop_token_ids[0]] if stops else [ids[0]] * parameters.max_tokens
        output = types.SimpleNamespace(token_ids=tuple(answer), finish_reason="stop" if stops else "length")
        return [types.SimpleNamespace(request_id=name, finished=True, outputs=[output])]


@pytest.fixture
def vllm(monkeypatch):
    """A vLLM with the names that the teacher imports; returns the engines that were built, with their options."""
    built, dies = [], []

    def llm(**options):
        engine = Engine(dies.pop() if dies else None)
        built.append((engine, options))
        return types.SimpleNamespace(llm_engine=engine)

    parameters = lambda **given: types.SimpleNamespace(**given)  # noqa: E731
    modules = {
        "vllm": {"LLM": llm, "SamplingParams": parameters, "__spec__": object()},
        "vllm.platforms": {"current_platform": types.SimpleNamespace(device_type="cpu")},
        "vllm.sampling_params": {"RequestOutputKind": types.SimpleNamespace(FINAL_ONLY="final")},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(tracing, "BLOCK", 2)
    return built, dies


def test_vllm_answers_are_written_as_they_end_and_a_killed_run_asks_only_for_what_is_open(config, tmp_path, vllm):
    built, dies = vllm
    run(config, engine="vllm")
    whole = sorted(rows(tmp_path), key=lambda row: (row["id"], row["sample"]))
    (engine, options), asked = built[0], dict(built[0][0].requests)
    assert [(row["id"], row["sample"]) for row in whole] == [(f"text-{i:05d}", k) for i in range(COUNT) for k in (0, 1)]
    assert engine.most == 2 * BATCH < COUNT * 2  # the queue is never empty, and never the whole set
    assert options["max_model_len"] == LIMIT + config.traces.max_prompt_tokens and options["generation_config"] == "vllm"
    assert len(set(asked.values())) == COUNT * 2  # a seed of its own for every answer
    (tmp_path / "traces.jsonl").unlink()

    dies.append(7)
    with pytest.raises(KeyboardInterrupt):
        run(config, engine="vllm")
    done = {(row["id"], row["sample"]) for row in rows(tmp_path)}
    assert len(done) == 6  # three blocks of two
    run(config, engine="vllm")
    again = dict(built[-1][0].requests)
    assert len(again) == COUNT * 2 - 6 and again.items() <= asked.items()
    assert sorted(rows(tmp_path), key=lambda row: (row["id"], row["sample"])) == whole


def test_without_vllm_the_mend_is_said_before_anything_is_read(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="has vLLM") as error:
        run(config, engine="vllm")
    assert "traces.engine=transformers" in error.value.mend


def test_a_task_takes_its_own_gpus():
    every = ["0", "1", "2", "3"]
    assert [devices_of(rank, 2, every) for rank in (0, 1)] == [["0", "1"], ["2", "3"]]
    assert devices_of(3, 1, ["GPU-7"]) == ["GPU-7"]  # the launcher has bound it
    with pytest.raises(ConfigError, match="tensor_parallel"):
        devices_of(2, 2, every)


def test_a_prompt_that_is_too_long_is_left_out_and_written_down(config, world, tmp_path):
    tokenizer = load_tokenizer(world[0])
    lengths = [len(row["messages"][0]["content"].split()) for row in (run(config), rows(tmp_path))[1]]
    assert min(lengths) < max(lengths)
    (tmp_path / "traces.jsonl").unlink()
    asked = {row["id"]: len(tokenizer(row["messages"][0]["content"])["input_ids"]) + 8 for row in rows(tmp_path)}
    run(config, max_prompt_tokens=28)
    left = {row["id"] for row in rows(tmp_path)}
    went = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert 0 < len(left) < COUNT and len(left) + len(went) == COUNT, asked
    assert all("more than traces.max_prompt_tokens" in line["reason"] for line in went)


def test_the_teachers_error_rate_is_the_share_of_judged_traces_that_are_wrong(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = dataclasses.replace(config, reward=RewardConfig("tests.data.test_generate_traces:short", workers=1))
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        run(config, verify=True)
    report = json.loads((tmp_path / "traces.report.json").read_text())  # of both shards
    found = rows(tmp_path)
    judged = [row for row in found if "reward" in row]
    assert [row["finish"] for row in judged] == ["stop"] * len(judged) and len(judged) < len(found)
    assert all(row["reward"] == (len(row["response"]) < 10) for row in judged)
    wrong = sum(row["reward"] < 1 for row in judged) / len(judged)
    assert 0 < wrong < 1 and report["error_rate"] == pytest.approx(wrong)
    assert (report["answers"], report["judged"], report["prompts"]) == (COUNT * 2, len(judged), COUNT)
    assert f"all: {wrong:.1%} of {len(judged)} judged traces are wrong" in capsys.readouterr().out
    run(config, verify=True)  # nothing left to do: the rate is that of the file
    assert f"{len(judged)} judged" in capsys.readouterr().out


def short(response, truth):
    """A verifier for the test above."""
    return len(response) < 10


def test_the_sets_own_traces_are_text_that_the_students_tokenizer_reads(config, world, tmp_path):
    turns = [{"role": "user", "content": "( six )\nsolve"}, {"role": "assistant", "content": "6\n\\boxed{6}"}]
    source = tmp_path / "set.jsonl"
    source.write_text("".join(json.dumps({"messages": turns, "source": name}) + "\n" for name in ("a", "b", "a")))
    config = dataclasses.replace(
        config, teacher=TeacherConfig(path=str(tmp_path / "no teacher here")),
        data=DataConfig(
            trace_prompts=DatasetConfig(str(source), fields=PromptFieldsConfig(prompt="messages", source="source")),
            system_prompt="facts",
        ),
    )  # fmt: skip
    run(config, engine="dataset", shard=0, shards=2)
    run(config, engine="dataset", shard=1, shards=2)
    run(config, engine="dataset", shard=1, shards=2)  # again: nothing is written twice
    tokenizer = load_tokenizer(world[0])
    examples, _ = load_traces(
        config.traces.path, tokenizer, max_length=64, rejected=Rejected(None, 0.0), end_ids=[tokenizer.eos_token_id]
    )
    assert [example.source for example in examples] == ["a", "a", "b"]
    response = examples[0].ids[examples[0].prompt_length :].tolist()
    assert response == [*tokenizer("6\n\\boxed{6}")["input_ids"], tokenizer.eos_token_id]
    prompt = tokenizer.apply_chat_template(
        [{"role": "system", "content": "facts"}, turns[0]], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert examples[0].ids[: examples[0].prompt_length].tolist() == prompt
