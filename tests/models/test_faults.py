"""What fails at three in the morning: kill -9 in any phase, a W&B that cannot be reached, a folder that cannot be written."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.stages import build_sft, configuration, layout_of
from tests.models.test_resume import EVERY_OPTION, ROOT, command, curve, environment, rank_states, shards


class Attempts:
    """Runs of a recipe one after the other, each killed where the test says (see ``killed_in_phase.py``)."""

    def __init__(self, world: Path, said: Path):
        self.world, self.said = world, said
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "killed_in_phase.py")], env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, stage: str, outputs: Path, steps: int, phase: str = "", step: int = 0, seconds: float = 0.0) -> int:
        options = [*(EVERY_OPTION if stage == "vold" else []), f"{stage}.steps={steps}", "checkpoint.keep=99"]
        arguments = command(self.world, stage, 1, outputs, *options)[2:]
        recipe = str(ROOT / "recipes" / f"{stage}.py")
        self.server.stdin.write(json.dumps([recipe, arguments, str(self.said), phase, step, seconds]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def whole(self, stage: str, outputs: Path, steps: int) -> None:
        assert self(stage, outputs, steps) == 0, self.said.read_text()[-4000:]

    def same_end(self, a: Path, b: Path, steps: int) -> None:
        assert curve(a) == curve(b) and len(curve(a)) == steps
        refills = [refill for *_, refill, _ in curve(a) if refill]
        assert not refills or sum(refill["dropped_groups"] for refill in refills) > 0
        assert shards(a, steps) == shards(b, steps)
        for left, right in zip(rank_states(a, steps), rank_states(b, steps), strict=True):
            assert left["schedule"] == right["schedule"]
        assert (b / "run/student.nemo").exists()


@pytest.fixture(scope="module")
def attempts(world, tmp_path_factory):
    running = Attempts(world, tmp_path_factory.mktemp("attempts") / "said.txt")
    yield running
    running.server.stdin.close()
    running.server.wait(60)


@pytest.mark.timeout(400)
def test_a_run_killed_in_every_phase_ends_as_an_undisturbed_one(attempts, tmp_path):
    whole, broken, steps = tmp_path / "whole", tmp_path / "broken", 4
    attempts.whole("vold", whole, steps)
    phases = [("generate", 1), ("teacher", 1), ("train", 1), ("checkpoint", 1), ("write", 2), ("sync", 2), ("export", 3)]
    for phase, step in phases:
        assert attempts("vold", broken, steps, phase, step, 0.005) == -signal.SIGKILL, f"not killed in {phase}"
    attempts.whole("vold", broken, steps)
    attempts.same_end(whole, broken, steps)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["sft", "vold"])
def test_a_run_killed_at_twenty_random_instants_ends_as_an_undisturbed_one(attempts, tmp_path, stage):
    chance = random.Random(stage)
    whole, broken, steps = tmp_path / "whole", tmp_path / "broken", 40
    attempts.whole(stage, whole, steps)
    phases = {"sft": ["data", "train", "checkpoint"], "vold": ["generate", "reward", "teacher", "train", "sync", "checkpoint"]}
    for _ in range(20):
        done = max((int(path.name[5:]) for path in broken.glob("run/checkpoints/step_*") if path.suffix == ""), default=0)
        code = attempts(stage, broken, steps, chance.choice(phases[stage]), done, chance.uniform(0, 0.2))
        assert code == -signal.SIGKILL, attempts.said.read_text()[-4000:]
    attempts.whole(stage, broken, steps)
    attempts.same_end(whole, broken, steps)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_folder_that_cannot_be_written_is_an_input_error(world, tmp_path):
    (tmp_path / "outputs").write_text("a file where a folder should be")
    done = subprocess.run(
        command(world, "sft", 1, tmp_path / "outputs"), env=environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 2 and "outputs" in done.stderr and "can be written" in done.stderr


def raising(world, outputs):
    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.megatron import parallel

    config = configuration(world, f"outputs={outputs}", "sft.max_length=64")
    layout_of(config)
    model = build_sft(config)

    def fails(*_, **__):
        raise RuntimeError("no route to rank 1")

    model.get_loss_and_metrics = fails
    try:
        model.fit(Run(outputs / "run", rank=0, config=config))
    except RuntimeError as error:
        return str(error), error.__notes__
    finally:
        parallel.destroy()


def test_a_rank_that_raises_or_waits_in_vain_says_where(world, tmp_path, gloo):
    assert gloo(1).run(raising, world, tmp_path) == [("no route to rank 1", ["rank 0 of 1: step 1, phase train"])]


def test_an_unreachable_wandb_is_said_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    from vold_nemo.checkpoint import run_folder
    from vold_nemo.config import LoggingConfig

    def unreachable(folder, logging):
        if logging.wandb_project is not None:
            raise ConnectionError("no route to host")
        return []

    monkeypatch.setattr(run_folder, "_nemo_loggers", unreachable)
    run = run_folder.Run(tmp_path / "run", rank=0, logging=LoggingConfig(tensorboard=True, wandb_project="project"))
    run.log(1, {"loss": 1.0})
    assert "no route to host" in caplog.text and "wandb" in caplog.text
    assert '"loss": 1.0' in run.metrics.read_text()


def test_a_read_only_folder_names_the_key(tmp_path):
    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.config import ConfigError

    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="outputs"):
        Run(tmp_path / "file" / "run", rank=0)
