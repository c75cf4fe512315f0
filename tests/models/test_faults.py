"""What fails at three in the morning: kill -9 in any phase, a W&B that cannot be reached, a folder that cannot be written."""

import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.models.test_resume import command, curve, environment, rank_states, run, shards, world  # noqa: F401

KILLER = str(Path(__file__).parent / "killed_in_phase.py")


def run_killed(world, stage, outputs, phase, step, seconds, *overrides) -> int:  # noqa: F811
    python, *recipe = command(world, stage, 1, outputs, *overrides)
    done = subprocess.run(
        [python, KILLER, phase, str(step), str(seconds), *recipe], env=environment(), capture_output=True, timeout=400
    )
    return done.returncode


def same_end(a: Path, b: Path) -> None:
    assert curve(a) == curve(b) and len(curve(a)) == 4
    assert shards(a) == shards(b)
    for left, right in zip(rank_states(a), rank_states(b), strict=True):
        assert left["schedule"] == right["schedule"]
    assert (b / "run/student.nemo").exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_killed_in_every_phase_ends_as_an_undisturbed_one(world, tmp_path):  # noqa: F811
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(world, "vold", 1, whole)
    for phase, step in [("generate", 1), ("teacher", 1), ("train", 2), ("checkpoint", 2), ("sync", 3), ("export", 3)]:
        assert run_killed(world, "vold", broken, phase, step, 0.005) == -signal.SIGKILL, f"not killed in {phase}"
    run(world, "vold", 1, broken)
    same_end(whole, broken)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", ["sft", "vold"])
def test_a_run_killed_at_ten_random_instants_ends_as_an_undisturbed_one(world, tmp_path, stage):  # noqa: F811
    chance = random.Random(stage)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(world, stage, 1, whole)
    phases = {"sft": ["data", "train", "checkpoint"], "vold": ["generate", "reward", "teacher", "train", "sync", "checkpoint"]}
    kills = 0
    for _ in range(10):
        step = max((int(path.name[5:]) for path in broken.glob("run/checkpoints/step_?")), default=0)
        if step == 4:
            break
        code = run_killed(world, stage, broken, chance.choice(phases[stage]), step, chance.uniform(0, 0.2))
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
    run(world, stage, 1, broken)
    assert kills >= 3
    same_end(whole, broken)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_folder_that_cannot_be_written_is_an_input_error(world, tmp_path):  # noqa: F811
    (tmp_path / "outputs").write_text("a file where a folder should be")
    done = subprocess.run(
        command(world, "sft", 1, tmp_path / "outputs"), env=environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 2 and "outputs" in done.stderr and "can be written" in done.stderr


def test_an_unreachable_wandb_is_said_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    from vold_nemo.config import LoggingConfig
    from vold_nemo.megatron import runs

    def unreachable(folder, logging):
        if logging.wandb_project is not None:
            raise ConnectionError("no route to host")
        return []

    monkeypatch.setattr(runs, "_nemo_loggers", unreachable)
    run_folder = runs.Run(tmp_path / "run", rank=0, logging=LoggingConfig(tensorboard=True, wandb_project="project"))
    run_folder.log(1, {"loss": 1.0})
    assert "no route to host" in caplog.text and "wandb" in caplog.text
    assert '"loss": 1.0' in run_folder.metrics.read_text()


def test_a_read_only_folder_names_the_key(tmp_path):
    from vold_nemo.config import ConfigError
    from vold_nemo.megatron.runs import Run

    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="outputs"):
        Run(tmp_path / "file" / "run", rank=0)
