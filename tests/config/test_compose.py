"""Bad overrides are refused with a way to mend them, and open sections are filled from the command line."""

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.config.compose import HydraArguments, compose
from vold_nemo.config.translate import as_config_error


def refused(*overrides: str) -> ConfigError:
    with pytest.raises(Exception) as caught:  # whatever Hydra raises: the translation is what is tested
        compose(HydraArguments.parse(list(overrides)).overrides)
    (error,) = as_config_error(caught.value, list(overrides))
    return error


@pytest.mark.parametrize(
    "override, key, mend",
    [
        ("sft.stps=3", "sft.stps", "did you mean sft.steps?"),
        ("stf.steps=3", "stf", "did you mean sft?"),
        ("+sft.new=3", "sft.new", "--help"),
        ("evaluate.text.pth=x", "evaluate.text.pth", "did you mean evaluate.text.path?"),
        ("teachers.mine.pth=x", "teachers.mine.pth", "did you mean teachers.mine.path?"),
        ("teachers.mine={path: x, fp8: {max_drfit: 1}}", "teachers.mine.fp8.max_drfit", "teachers.mine.fp8.max_drift?"),
        ("teachers.mine={path: x, fp8: {max_drift: low}}", "teachers.mine.fp8.max_drift", "type"),
        ("data.mixture.maths=much", "data.mixture.maths", "type"),
        ("evaluate.models=3", "evaluate.models", "evaluate.models.NAME=..."),
        ("sft.steps=many", "sft.steps", "type"),
        ("sft.optimizer.learning_rate=fast", "sft.optimizer.learning_rate", "type"),
        ("parallel.sequence=perhaps", "parallel.sequence", "type"),
        ("sft=3", "sft", "--help"),
        ("student=llava", "student", "llava.yaml"),
        ("experiment=papr_3b", "experiment", "did you mean experiment=paper_3b?"),
        ("studnet=miniature", "studnet", "did you mean student?"),
        ("student.path=???", "student.path", "student.path=..."),
        ("name=${nope}", "name", "nope"),
        ("sft={steps:3", "command line", "quote it"),
        ("teacher=null", "teacher", "teacher=NAME"),
        ("teacher=/etc/passwd", "teacher", "teacher=NAME"),
        ("student=[a,b]", "student", "student=NAME"),
        ("objective=", "objective", "objective=NAME"),
        ("experiment=null", "experiment", "leave it out"),
        ("+experiment=", "experiment", "leave it out"),
        ("experiment=../foo", "experiment", "experiment=NAME"),
        ("+student=miniature", "+student", "leave the + out"),
        ("sft.steps=1,2", "sft.steps", "one process"),
        ("seed=range(1,3)", "seed", "one process"),
        ("data=orz_57k,miniature", "data", "one process"),
        ("evaluate.benchmarks=mathvista,mmmu", "evaluate.benchmarks", "[mathvista,mmmu]"),
        ("evaluate.benchmarks=mathvista", "evaluate.benchmarks", "[mathvista]"),
        ("sft=null", "sft", "sft.run=VALUE"),
        ("evaluate.text=[1]", "evaluate.text", "evaluate.text=null"),
        ("data.prompts=mine.jsonl", "data.prompts", "data.prompts.path=VALUE"),
        ("teachers.x.fp8=[1]", "teachers.x.fp8", "teachers.x.fp8.backend=VALUE"),
        ("sft.steps=[1]", "sft.steps", "one value"),
        ("teachers.3.path=x", "teachers: name", "teachers.one.path=x"),
        ("prepare.against.1e3.path=x", "prepare.against: name", "another name"),
        ("teachers.null.path=x", "teachers: name", "another name"),
        ("evaluate.models.qwen2.5=x", "evaluate.models: name", "{qwen2.5: x}"),
        ("evaluate.models={1: x}", "evaluate.models: name", "letter"),
        ("sft.optimizer={schedule: [a]}", "sft.optimizer.schedule", "one value"),
        ("~sft", "~sft", "leave sft"),
        ("~evaluate.image", "~evaluate.image", "evaluate.image=null"),
        ("~evaluate.models.nobody", "~evaluate.models.nobody", "leave it out"),
        ("dry_run", "command line", "dry_run=VALUE"),
        ("--multirun", "--multirun", "one process"),
        ("--config-name=other", "--config-name", "--config-dir"),
    ],
)
def test_a_bad_override_names_key_value_allowed_and_mend(override: str, key: str, mend: str):
    error = refused(override)
    assert error.key == key
    assert error.value is not None and (error.value or override.endswith("="))
    assert error.allowed
    assert mend in error.mend


@pytest.mark.parametrize("key", ["name", "sft.steps", "export.path", "evaluate.text", "teachers.x.path", "rollout.stop"])
def test_an_empty_value_is_a_variable_that_nobody_set(key):
    error = refused(f"{key}=")
    assert (error.key, error.value) == (key, "") and "variable of the shell" in error.mend


def test_all_overrides_that_cannot_be_meant_are_told_at_once():
    with pytest.raises(ExceptionGroup) as caught:
        HydraArguments.parse(["sft.steps=1,2", "teacher=", "seed=3", "sft=null"])
    assert [error.key for error in as_config_error(caught.value)] == ["sft.steps", "teacher", "sft"]


def test_what_is_meant_passes():
    given = ["evaluate.text=null", "rollout.stop=[]", "data.instruction=''", "evaluate.models.1=x", "export.path=null"]
    given += ["seed=3", "data.mixture={a/b: 1}", "student=miniature.yaml", "hydra.run.dir=.", "teachers.x={path: a}"]
    config = compose(HydraArguments.parse(given).overrides)
    assert (config.evaluate.text, config.rollout.stop, config.data.instruction) == (None, [], "")
    assert (config.evaluate.models, config.data.mixture) == ({"1": "x"}, {"a/b": 1})


def test_a_wrong_option_lists_the_options():
    assert refused("student=llava").allowed .startswith("miniature | qwen2_5_vl_32b | qwen2_5_vl_3b | ")


def test_a_null_section_and_a_map_are_filled_from_the_command_line():
    given = ["evaluate.text.path=a:b/c.jsonl", "evaluate.text.fields.image=pictures", "evaluate.models.mine=folder"]
    config = compose(HydraArguments.parse(given).overrides)
    assert config.evaluate.text.path == "a:b/c.jsonl"
    assert config.evaluate.text.fields.image == "pictures"
    assert config.evaluate.models == {"mine": "folder"}
    several = ["teachers.maths.path=a", "teachers.code.path=b", "teachers.maths.offload=true"]
    for words in (several, ["teachers={maths: {path: a, offload: true}, code: {path: b}}"]):
        teachers = compose(HydraArguments.parse(words).overrides).teachers
        assert {name: (one.path, one.offload) for name, one in teachers.items()} == {"maths": ("a", True), "code": ("b", False)}
    kept = compose(HydraArguments.parse(["experiment=miniature", "evaluate.text.limit=3"]).overrides).evaluate.text
    assert kept.limit == 3 and kept.path.endswith("test_text.jsonl")


def test_a_programming_error_is_not_taken_for_a_configuration_error():
    assert as_config_error(ValueError("a shape is wrong")) == []
    assert as_config_error(ExceptionGroup("several", [ConfigError("a", 1, "2", "b"), RuntimeError("c")])) == []


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("# @package _global_\nsft: [\n", "mine.yaml, line 3", "YAML"),
        ("# @package _global_\nsft:\n\tsteps: 3\n", "mine.yaml, line 3", "YAML"),
        ("# @package _global_\nseed: 1\nseed: 2\n", "mine.yaml, line 3", "YAML"),
        ("# @package _global_\ndefaults:\n  - /experiment/mine\n", "defaults", "circle"),
        ("sft:\n  steps: 3\n", "mine.yaml", "# @package _global_"),
        ("# a remark\n# @package _global_\nsft: {steps: 3}\n", "mine.yaml", "# @package _global_"),
        ("", "mine.yaml", "# @package _global_"),
        ("# @package _global_\n- a\n", "configuration", ""),
        ("# @package _global_\nname: \udcff\n", "mine.yaml", "UTF-8"),
    ],
)
def test_a_file_of_ones_own_that_cannot_be_read_is_named_with_its_line(tmp_path, monkeypatch, text, key, said):
    file = tmp_path / "conf/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    monkeypatch.chdir(tmp_path)
    error = refused("experiment=mine")
    assert error.key.endswith(key) and said in error.allowed


@pytest.mark.parametrize(
    ("text", "key", "value", "mend"),
    [
        ("sft: {stps: 3}", "sft.stps", 3, "did you mean sft.steps?"),
        ("sft: {optimizer: {learning_rte: [1]}}", "sft.optimizer.learning_rte", [1], "sft.optimizer.learning_rate?"),
        ("teachers: {a: {pth: x}}", "teachers.a.pth", "x", "did you mean teachers.a.path?"),
        ("evaluate: {text: {pth: 3}}", "evaluate.text.pth", 3, "did you mean evaluate.text.path?"),
        ("sft: {steps: many}", "sft.steps", "many", "type"),
        ("sft: [1]", "sft", [1], "sft.run=VALUE"),
        ("vold: {validation: {data: x.jsonl}}", "vold.validation.data", "x.jsonl", ""),
        ("teachers: {3: {path: x}}", "teachers.3: name", 3, "'3'"),
        ("evaluate: {models: {1: x}}", "evaluate.models: name", 1, "'1'"),
        ("stdent: {path: x}", "stdent", {"path": "x"}, "did you mean student?"),
        ("defaults: [override /studnt: x]", "experiment/mine.yaml: defaults", "override /studnt", "override /student?"),
    ],
)
def test_a_wrong_key_inside_a_file_is_shown_with_the_value_that_stands_there(tmp_path, monkeypatch, text, key, value, mend):
    file = tmp_path / "conf/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{text}\n")
    monkeypatch.chdir(tmp_path)
    error = refused("experiment=mine")
    assert (error.key, error.value) == (key, value)
    assert mend in error.mend and ("mine.yaml" in error.mend or "mine.yaml" in error.key)


def test_a_wrong_key_in_a_file_of_a_group_is_shown_with_its_value(tmp_path, monkeypatch):
    file = tmp_path / "conf/student/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("student: {path: x}\n")
    monkeypatch.chdir(tmp_path)
    error = refused("student=mine")
    assert (error.key, error.value) == ("student.student", {"path": "x"})


def test_a_map_may_be_given_whole():
    given = ["evaluate.models={a: x/y}", "data.mixture={a: 1, b: 2}"]
    config = compose(HydraArguments.parse(given).overrides)
    assert (config.evaluate.models, config.data.mixture) == ({"a": "x/y"}, {"a": 1, "b": 2})


def test_text_with_brackets_braces_and_a_home_needs_no_quotes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = [
        "verify.fields.truth=final_answer[0]", "data.prompts.fields.answer=[1].ground_truth.value",
        "evaluate.text.path=~/q.jsonl",
        "evaluate.text.fields.prompt=messages[-1]['content']", "student.path=~/models/mine", "evaluate.models.mine=~/b",
        "reward.verifier=numeric(0.02)", "data.instruction=Think (briefly), then: {answer}", "data.without=[a-1,b]",
        "verify.answers=${outputs}/x[1].jsonl", "teacher.path='kept as it is'", "outputs=here",
    ]  # fmt: skip
    config = compose(HydraArguments.parse(given).overrides)
    assert (config.verify.fields.truth, config.data.prompts.fields.answer) == ("final_answer[0]", "[1].ground_truth.value")
    assert (config.evaluate.text.path, config.evaluate.text.fields.prompt) == ("/home/me/q.jsonl", "messages[-1]['content']")
    assert (config.student.path, config.evaluate.models["mine"]) == ("/home/me/models/mine", "/home/me/b")
    assert (config.reward.verifier, config.data.instruction) == ("numeric(0.02)", "Think (briefly), then: {answer}")
    assert (config.data.without, config.verify.answers) == (["a-1", "b"], "here/x[1].jsonl")
    assert config.teacher.path == "kept as it is"
