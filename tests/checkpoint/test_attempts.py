"""What an attempt runs under is written down, what differs from the last one is said, and another run is not gone on with."""

import copy
import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from vold_nemo.checkpoint import attempts
from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.config.reads import reads_of
from vold_nemo.config.tree import hint_of, value_at, values

STAGES = ("sft", "vold")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("student", "teacher"):
        (folder / name).mkdir()
        save_file({"a": torch.full((1000,), float(len(name)))}, folder / name / "model.safetensors")
    return folder


@pytest.fixture(scope="module", autouse=True)
def base():
    """The miniature's configuration, composed once."""
    global BASE
    BASE = compose(["experiment=miniature"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attempts, "code", lambda: "1.0")
        yield


def record(models, stage, *changes, number=1):
    """Of the miniature on ``models``, with ``changes`` (key=YAML)."""
    config = copy.deepcopy(BASE)
    paths = (f"student.path={models}/student", f"vold.start={models}/student", f"teacher.path={models}/teacher")
    for change in (*paths, *changes):
        key, _, value = change.partition("=")
        owner, _, name = key.rpartition(".")
        setattr(value_at(config, owner) if owner else config, name, yaml.safe_load(value))
    return json.loads(attempts.text(attempts.describe(config, stage, data="rows", world=1, number=number)))


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_that_a_stage_reads_is_decided_upon(stage):
    assert set(reads_of(stage)) == {*attempts.MEANS[stage], *attempts.FREE_SECTIONS[stage]}
    assert not set(attempts.MEANS[stage]) & set(attempts.FREE_SECTIONS[stage])


def test_no_key_is_set_free_that_is_not_there():
    for key in (*attempts.FREE, *attempts.NEVER):
        assert hint_of(key.replace("*", "name")) is not None, key


CHANGES = {  # what was changed in silence once, and what comes near it
    "vold": [
        "vold.optimizer.weight_decay=0.5", "vold.optimizer.epsilon=1e-3", "vold.optimizer.beta2=0.5",
        "vold.optimizer.clip_grad=9", "vold.optimizer.learning_rate=0.1", "objective.kl.enabled=false",
        "objective.kl.estimator=k3",
        "objective.kl.beta.value=0.25", "rollout.temperature=0.5", "reward.verifier=math", "rollout.samples_per_prompt=7",
        "vold.updates_per_step=3", "rollout.max_tokens=5", "rollout.overlong=mask_all", "reward.seconds=9",
        "teacher.precision=fp32", "teacher.thinking=true", "data.system_prompt=Think", "vold.prompts_per_step=5", "seed=9",
        "objective.policy.clip_high=0.5", "tokenizer.adopt_teacher_tokens=true", "data.mixture={a: 1.0}",
    ],
    "sft": ["sft.optimizer.weight_decay=0.5", "sft.packing=true", "sft.max_length=99", "sft.batch=3", "seed=9"],
}  # fmt: skip


@pytest.mark.parametrize(("stage", "change"), [(stage, change) for stage in STAGES for change in CHANGES[stage]])
def test_what_changes_the_meaning_is_refused_until_it_is_accepted(stage, change, models, tmp_path):
    before, now = record(models, stage), record(models, stage, change)
    with pytest.raises(ConfigError, match=r"checkpoint\.accept=\[") as refused:
        attempts.compare(before, now, [], tmp_path / "step_4")
    asked = str(refused.value).partition("checkpoint.accept=[")[2].partition("]")[0].split(",")
    key = change.partition("=")[0]
    assert any(one.startswith(key) for one in asked), asked
    assert all(one in attempts.compare(before, now, asked, tmp_path / "step_4") for one in asked)
    sections = {one.split(".")[0] for one in asked}
    assert attempts.compare(before, now, sections, tmp_path / "step_4")  # a section stands for its keys


FREE = {
    "vold": [
        "vold.steps=500", "vold.micro_batch_tokens=99", "rollout.batch=3", "checkpoint.every=7", "checkpoint.keep=7",
        "limits.wall_minutes=9", "logging.tensorboard=false", "vold.rollout_log_every=3", "rollout.sleep=true",
        "vold.offload.optimizer=true", "reward.workers=2", "outputs=elsewhere",
    ],
    "sft": [
        "sft.steps=500", "sft.micro_batch=1", "rollout.temperature=0.5", "teacher.thinking=true", "objective.kl.enabled=false"
    ],
}  # fmt: skip


@pytest.mark.parametrize(("stage", "change"), [(stage, change) for stage in STAGES for change in FREE[stage]])
def test_what_leaves_the_meaning_is_said_where_the_stage_reads_it(stage, change, models, tmp_path):
    said = attempts.compare(record(models, stage), record(models, stage, change), [], tmp_path / "step_4")
    key = change.partition("=")[0]
    assert (key in said) == (key.split(".")[0] in reads_of(stage))


def test_the_same_again_says_nothing(models, tmp_path):
    for stage in STAGES:
        assert attempts.compare(record(models, stage), record(models, stage, number=2), [], tmp_path) == ""


@pytest.mark.parametrize(
    ("stage", "change", "key"),
    [("sft", "precision=bf16", "precision"), ("vold", "vold.optimizer.distributed=true", "vold.optimizer.distributed")],
)
def test_what_has_another_form_on_disk_is_refused_for_good(stage, change, key, models, tmp_path):
    with pytest.raises(ConfigError, match="another form") as refused:
        attempts.compare(record(models, stage), record(models, stage, change), [key], tmp_path)
    assert refused.value.key == key


def test_another_stage_is_another_run(models, tmp_path):
    with pytest.raises(ConfigError, match="another form"):
        attempts.compare(record(models, "sft"), record(models, "vold"), ["sft", "vold"], tmp_path)


@pytest.mark.parametrize(("stage", "which", "key"), [
    ("sft", "student", "student.path"), ("vold", "student", "vold.start"), ("vold", "teacher", "teacher.path"),
])  # fmt: skip
def test_weights_are_known_by_their_contents_and_not_by_their_folder(stage, which, key, models, tmp_path):
    import shutil

    before = record(models, stage)
    moved = shutil.copytree(models, tmp_path / "moved")
    said = attempts.compare(before, record(moved, stage), [], tmp_path)
    assert key in said and '"weights ' not in said
    file = moved / which / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{key}: \"weights"):
        attempts.compare(before, record(moved, stage), [], tmp_path)
    assert '"weights ' in attempts.compare(before, record(moved, stage), [key], tmp_path)


def test_a_large_file_is_told_apart_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "_WHOLE", 100)
    monkeypatch.setattr(attempts, "_BLOCK", 64)
    file = tmp_path / "model.safetensors"
    content = bytearray(64 * 64)
    file.write_bytes(content)
    known = attempts.digest(tmp_path)
    for place in (0, 2000, len(content) - 1):
        content[place] = 1
        file.write_bytes(content)
        assert attempts.digest(tmp_path) != known
        content[place] = 0
    assert attempts.digest(tmp_path / "nowhere") is None


def test_an_accepted_key_is_one_of_the_configuration():
    assert list(attempts.check_accept(["vold.optimizer", "rollout.temperature", "teachers.mine.path"])) == []
    (error,) = attempts.check_accept(["rollout.temprature"])
    assert error.value == "rollout.temprature"


def test_a_record_holds_every_resolved_setting_and_is_counted(models, tmp_path):
    said = record(models, "vold")
    read = {key for key, *_ in values(BASE) if key.split(".")[0] in reads_of("vold")}
    assert set(said["settings"]) >= read - {"data.mixture"} and said["settings"]["rollout.temperature"] == 1.0
    assert said["versions"]["torch"] and said["weights"].keys() == {"vold.start", "teacher.path"}
    assert said["accepted"] == []
    assert attempts.next_number(tmp_path) == 1
    attempts.write(tmp_path, said)
    assert attempts.next_number(tmp_path) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"settings": 1}', "{"])
def test_a_record_that_is_none_is_refused_by_name(content, tmp_path):
    (tmp_path / "attempt.json").write_text(content)
    with pytest.raises(ConfigError, match=r"attempt\.json"):
        attempts.of_checkpoint(tmp_path)
