"""``dry_run=true`` opens what each verb will read: missing is "not here yet" everywhere, broken is an error everywhere."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vold_nemo.config import Config
from vold_nemo.config.compose import HydraArguments, compose
from vold_nemo.config.places import recipes
from vold_nemo.config.sources import with_local_folders
from vold_nemo.config.tree import value_at
from vold_nemo.planning.dry_run import INPUTS, opened
from vold_nemo.planning.resolved import describe
from vold_nemo.planning.validity import Pending, findings

BARE = {"watch", "show_rollouts"}  # they take a run folder and no configuration
READ_NOTHING = {"prepare_miniature", "doctor", "reproduce"}  # the last says what it lacks in its own words
NEEDED = (  # what some verbs must be told
    "compare.results.a=there", "handoff.model=there", "verify.answers=there.jsonl", "cluster.launch.stage=/tmp",
)  # fmt: skip


@functools.cache  # a third of a second each
def composed(*overrides: str) -> Config:
    return compose(HydraArguments.parse([*overrides, "dry_run=true"]).overrides)


def look(verb: str, *overrides: str):
    """(errors, what is not here yet, lines) of a dry run, as the command line puts them together."""
    config = with_local_folders(composed(*overrides))
    known, found = findings(config, verb), opened(config, verb)
    errors = [*(error for error in known if not isinstance(error, Pending)), *found.errors]
    if not errors:
        describe(config, verb)
    return errors, {error.key for error in [*known, *found.waiting] if isinstance(error, Pending)}, found.said


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    from vold_nemo.miniature.random_models import write_random_student, write_random_teacher

    folder = tmp_path_factory.mktemp("world")
    write_random_student(folder / "base")
    write_random_teacher(folder / "teacher")
    rows = [{"id": str(i), "prompt": f"{i} + 1 = ?", "answer": str(i + 1), "domain": "a"} for i in range(3)]
    (folder / "data").mkdir()
    for name in ("rl_prompts", "sft_prompts", "test_text", "dev_text"):
        (folder / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_verb_says_what_it_reads():
    assert set(INPUTS) == {file.stem for file in recipes().glob("*.py")} - BARE


@pytest.mark.parametrize("verb", sorted(INPUTS))
def test_what_is_not_here_is_not_here_yet_in_every_verb_and_stops_none(verb, here):
    errors, waiting, said = look(verb, "experiment=miniature", *NEEDED)
    assert not errors
    assert said and bool(waiting) == (verb not in READ_NOTHING)


@pytest.mark.parametrize("verb", ["sft", "vold", "evaluate", "export_hf", "plan", "chain", "prefetch", "rehearse"])
def test_an_absolute_path_is_no_other_state(verb, here):
    paths = ["student.path=/no/where", "evaluate.models={a: /no/where}", "export.source=/no/where"]
    errors, waiting, _ = look(verb, "experiment=miniature", *paths)
    assert not errors and waiting & {"student.path", "evaluate.models.a", "export.source"}


@pytest.mark.parametrize(
    ("verb", "overrides", "key"),
    [
        ("evaluate", [], "evaluate.models"), ("evaluate", [], "evaluate.text, "),
        ("compare", [], "compare.results"),
        ("handoff", [], "handoff.model"),
        ("verify", [], "verify.answers"),
        ("stage_weights", [], "cluster.launch.stage"),
        ("prepare_miniature", ["device=cuda"], "device"),
        ("verify", ["verify.answers=x", "reward.verifier=nope"], "reward.verifier"),
    ],
)  # fmt: skip
def test_what_no_file_can_mend_is_an_error(verb, overrides, key, here):
    (here / "x").mkdir()
    (here / "x/train.jsonl").write_text('{"text": "a", "truth": "b"}\n')
    errors, _, _ = look(verb, *overrides)
    assert any(error.key.startswith(key) for error in errors)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[]", "config.json"),
        ("adapter_config.json", "{}", "adapter"),
        ("quantize_config.json", "{}", "quantize_config.json"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "model-1.safetensors"}}', "one set of weights"),
        ("model.safetensors", "cut", "safetensors"),
        ("tokenizer.json", "{}", "tokenizer"),
    ],
)
def test_a_checkpoint_that_is_broken_is_an_error_of_every_verb_that_reads_it(world, here, name, content, said):
    shutil.copytree(world / "base", here / "base")
    (here / "base" / name).write_text(content)
    given = ["evaluate.models.a=base", "student.path=base", "vold.start=base", "export.source=base", "handoff.model=base"]
    for verb in ("evaluate", "sft", "vold", "export_hf", "handoff", "plan"):
        errors, _, _ = look(verb, "experiment=miniature", *given)
        assert any(said in str(error) for error in errors), verb


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        ("generate_traces", "data.trace_prompts"), ("vold", "data.prompts"), ("plan", "data.prompts"),
        ("prepare_data", "data.prompts"), ("evaluate", "evaluate.text"), ("vold", "vold.validation.text"),
    ],
)  # fmt: skip
def test_a_set_is_read_as_the_run_reads_it(world, here, verb, key):
    whole = composed("experiment=miniature", f"miniature.path={world}")
    assert any(
        line.startswith(f"reads    {key}.path: ") and "3 rows, of the first 3 3 usable" in line
        for line in opened(whole, verb).said
    )
    mistyped = changed(whole, key, fields=dataclasses.replace(value_at(whole, key).fields, prompt="promt"))
    assert any(error.key == f"{key}.fields.prompt" and "prompt" in error.mend for error in opened(mistyped, verb).errors)
    (here / "bad.jsonl").write_text("no JSON\n" * 3)
    errors = opened(changed(whole, key, path=str(here / "bad.jsonl")), verb).errors
    assert any("3 of 3 rows rejected" in str(error) for error in errors)


def changed(config, key: str, **values):
    """``config`` with other values in the section ``key``."""
    if not key:
        return dataclasses.replace(config, **values)
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, **values)})


def test_a_whole_set_of_models_and_data_waits_for_nothing(world, here):
    errors, waiting, said = look("generate_traces", "experiment=miniature", f"miniature.path={world}")
    assert not errors and not waiting
    assert any("qwen3, 1 file of weights" in line for line in said)


def test_traces_runs_archives_and_answers_are_opened(here):
    given = ["experiment=miniature", *NEEDED]
    traces = here / "outputs/miniature/traces/traces.jsonl"
    traces.parent.mkdir(parents=True)
    traces.write_text('{"id": "a", "messages": [], "response": "x"}\n')
    assert any("of the first 1 lines 1 traces" in line for line in look("sft", *given)[2])
    traces.write_text("{}\n")
    assert any("no trace in 1 lines" in str(error) for error in look("sft", *given)[0])
    traces.with_name("traces.0-of-2.jsonl").touch()
    assert any("the 2 shards of traces.jsonl" in str(error) for error in look("sft", *given)[0])

    step = here / "outputs/miniature/sft/checkpoints/step_20"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text('{"files": {"a": {}}}')
    assert any("checkpoint of step 20, 1 files" in line for line in look("export_hf", *given)[2])
    (here / "x.nemo").write_text("no archive")
    assert any("a .nemo archive" in str(error) for error in look("export_hf", *given, "export.run=x.nemo")[0])

    answers = here / "there/answers/a.jsonl"
    answers.parent.mkdir(parents=True)
    answers.write_text('{"set": 3}\n')
    assert any("a.jsonl, line 1" in str(error) for error in look("compare", *given)[0])
    results = here / "outputs/miniature/evaluation/results.json"
    results.parent.mkdir(parents=True)
    results.write_text("[]")
    assert any("results.json" in str(error) for error in look("report", *given)[0])


@pytest.mark.parametrize(("text", "code", "told"), [(None, 0, "not here yet: verify.answers"), ("{", 2, "rejected")])
def test_the_command_leaves_with_0_where_something_is_missing_and_with_2_where_it_is_broken(here, text, code, told):
    if text is not None:
        (here / "a.jsonl").write_text(text)
    command = [sys.executable, str(recipes() / "verify.py"), "verify.answers=a.jsonl", "dry_run=true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    assert ("reads    verify.answers" in done.stdout) == (code == 0)
    assert [file.name for file in here.iterdir()] == ([] if text is None else ["a.jsonl"])
