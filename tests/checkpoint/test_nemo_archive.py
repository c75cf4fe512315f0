"""A .nemo archive holds every rank's weights and loads in any layout; NeMo's own holds rank 0's."""

import json
import re
import tarfile

import pytest
import torch

from tests.megatron import tiny
from vold_nemo.checkpoint import nemo_archive
from vold_nemo.config import ConfigError

pytestmark = pytest.mark.timeout(300)  # each worker imports NeMo once
SLOW = 240.0


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source")
    tiny.save("qwen3", path, tied=False)
    (path / "tokenizer.json").write_text("{}")
    return path


def _job(name, *args):
    from tests.checkpoint import nemo_jobs

    return getattr(nemo_jobs, name)(*args)


@pytest.mark.parametrize("job", ["through_nemos_own_archive", "through_lightnings_checkpoint"])
def test_nemo_and_lightning_silently_give_rank_0s_shard_to_every_rank(job, source, tmp_path, gloo):
    (zero, zero_again), (one, one_again) = gloo(2).run(_job, job, source, tmp_path / "plain.nemo", timeout=SLOW)
    name = "model.decoder.layers.0.mlp.linear_fc1.weight"
    assert not torch.equal(zero[name], one[name])  # two different shards went in
    assert torch.equal(zero_again[name], zero[name])
    assert torch.equal(one_again[name], zero[name])  # and the first came out twice, without an error


@pytest.fixture(scope="module")
def archive(source, tmp_path_factory, gloo):
    file = tmp_path_factory.mktemp("ours") / "model.nemo"
    return file, gloo(2).run(_job, "save_ours", source, file, 2, 1, True, timeout=SLOW)


def test_ours_gives_every_rank_its_own_shard_back(archive, gloo):
    file, before = archive
    assert [path.name for path in file.parent.iterdir()] == ["model.nemo"]  # nothing is left beside it
    for mine, (again, _, files) in zip(
        before, gloo(2).run(_job, "restore_ours", file, 2, 1, tiny.tokens(), timeout=SLOW), strict=True
    ):
        assert mine.keys() == again.keys() and all(torch.equal(mine[key], again[key]) for key in mine)
        assert sorted(files) == ["config.json", "generation_config.json", "tensors.json", "tokenizer.json"]  # no weights


def test_ours_restores_in_any_layout(archive, gloo):
    file, _ = archive
    ids = tiny.tokens()
    one = gloo(1).run(_job, "restore_ours", file, 1, 1, ids, timeout=SLOW)[0][1]
    assert one.std() > 0.1
    for tensor, pipeline in [(2, 1), (1, 2)]:
        found = gloo(2).run(_job, "restore_ours", file, tensor, pipeline, ids, timeout=SLOW)[-1][1]
        assert torch.allclose(found, one, atol=1e-4)


def test_an_unpacked_archive_restores_too(archive, source, tmp_path, gloo):
    file, _ = archive
    ids = tiny.tokens()
    gloo(2).run(_job, "save_ours", source, tmp_path / "model.nemo", 1, 2, False, timeout=SLOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folders", "manifest.json", "model_config.yaml", "weights"]
    packed = gloo(1).run(_job, "restore_ours", file, 1, 1, ids, timeout=SLOW)[0]
    unpacked = gloo(1).run(_job, "restore_ours", file, 1, 1, ids, str(tmp_path), timeout=SLOW)[0]
    assert torch.equal(packed[1], unpacked[1])
    assert (tmp_path / "weights" / "index.json").exists()  # reading takes nothing away


def test_the_archive_holds_configuration_weights_of_all_ranks_and_small_files(archive, gloo):
    file, _ = archive
    with tarfile.open(file) as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    assert {"model_config.yaml", "folders/checkpoint.path/tokenizer.json", "weights/index.json"} <= names
    assert {"weights/__0_0.distcp", "weights/__1_0.distcp"} <= names  # one from each rank
    assert not any("ckpt" in name or "safetensors" in name for name in names)
    config = gloo(1).run(_job, "config_of", file, timeout=SLOW)[0]
    assert config["architecture"]["family"] == "qwen3" and "target" not in config


def test_what_an_archives_configuration_says_is_text_and_stays_inside(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    config = tmp_path / "model_config.yaml"
    config.write_text("path: ${oc.env:SECRET}\nstudent: {path: nemo:folders/student.path}\ntarget: os.system\n")
    found = nemo_archive._config_in(tmp_path, None)
    assert found.path == "${oc.env:SECRET}" and found.student.path == f"{tmp_path}/folders/student.path"
    assert "target" not in found
    for outside in ("nemo:folders/../../x", "nemo:/etc", "nemo:folders//etc", "nemo:../x", "nemo:weights", "nemo:"):
        config.write_text(f"student: {{path: '{outside}'}}\n")
        with pytest.raises(ConfigError, match=r"student\.path"):
            nemo_archive._config_in(tmp_path, None)


def test_a_run_folder_has_tensorboard_and_no_checkpoints_of_lightning(tmp_path, gloo):
    first = gloo(1).run(_job, "log_a_run", tmp_path, [1, 2, 3], None, timeout=SLOW)[0]
    again = gloo(1).run(_job, "log_a_run", tmp_path, [3, 4], 2, timeout=SLOW)[0]
    for names, events in (first, again):  # a second start moves nothing away
        assert names == ["config.yaml", "metrics.jsonl", "tensorboard"]
        assert any(name.startswith("events.out.tfevents") for name in events)
    assert (tmp_path / "config.yaml").read_text() == "a:\n  b: 1\nc: 1\n"
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("seconds.train")
    assert {event.step for event in scalars} == {1, 2, 3, 4}


def test_a_logger_that_fails_is_said_once_and_catches_up(tmp_path, gloo):
    before, after, said, lines, steps = gloo(1).run(_job, "log_where_the_folder_goes", tmp_path, timeout=SLOW)[0]
    assert (before, after) == (1, 0) and lines == steps
    warning, caught_up = said
    assert "FileNotFoundError" in warning and "goes on without it" in warning and "has caught up" in caught_up
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (first,) = re.findall(r"from step (\d+)", caught_up)
    (folder,) = (tmp_path / "board").glob("*/version_0")
    scalars = EventAccumulator(str(folder)).Reload().Scalars("reward")
    assert [event.step for event in scalars] == list(range(int(first), steps + 1))


def test_the_trainer_behind_the_loggers_knows_nothing_of_slurm_and_saves_nothing(tmp_path, gloo):
    plugin, callbacks = gloo(1).run(_job, "trainer_of_a_run", tmp_path, timeout=SLOW)[0]
    assert plugin == "LightningEnvironment"
    assert not any("Checkpoint" in name or "Preemption" in name for name in callbacks)


def test_a_resumed_run_takes_back_the_metrics_after_its_checkpoint(tmp_path):
    from vold_nemo.checkpoint.run_folder import Run

    run = Run(tmp_path, rank=0)
    for step in (1, 2, 3):
        run.log(step, {"loss": torch.tensor(float(step)), "worst": float("nan")})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    again = Run(tmp_path, rank=0)
    again.resume_at(2)
    again.log(3, {"loss": 30.0})
    Run(tmp_path, rank=1).log(3, {"loss": 99.0})  # only rank 0 writes
    lines = [json.loads(line) for line in again.metrics.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert lines[0]["worst"] == "nan"
