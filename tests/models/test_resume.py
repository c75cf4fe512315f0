"""A run that is killed ends where the undisturbed one does, bit for bit, with real recipes and the real rollout engine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.models.stages import build_sft, configuration, layout_of

ROOT = Path(__file__).parents[2]


def command(world: Path, stage: str, ranks: int, outputs: Path, *overrides: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [
        *(launcher if ranks > 1 else [sys.executable]), str(ROOT / "recipes" / f"{stage}.py"), "experiment=miniature",
        f"student.path={world}/student", f"teacher.path={world}/teacher", f"vold.start={world}/student",
        f"data.prompts.path={world}/text.jsonl", f"traces.path={world}/traces.jsonl",
        "vold.validation.data=null", "vold.validation.every=0",
        f"outputs={outputs}", "sft.run=run", "vold.run=run", "logging.tensorboard=false", "sft.steps=4", "sft.batch=8",
        "sft.optimizer.warmup_steps=1", "vold.steps=4", "vold.prompts_per_step=4", "rollout.max_tokens=10",
        "checkpoint.every=1", "checkpoint.keep=9", *overrides,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def run(*arguments) -> None:
    done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]


def run_and_kill(outputs: Path, *arguments) -> None:
    """Kill -9 the whole session as soon as step 2 has its checkpoint: somewhere in step 3."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    try:
        while not (outputs / "run/checkpoints/step_2").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint after 300 s"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rank_states(outputs: Path, step: int = 4) -> list:
    files = sorted((outputs / f"run/checkpoints/step_{step}/ranks").glob("*.pt"))
    assert files
    return [torch.load(file, weights_only=True) for file in files]


def shards(outputs: Path, step: int = 4) -> dict[str, str]:
    manifest = json.loads((outputs / f"run/checkpoints/step_{step}/manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".distcp")}


def curve(outputs: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (outputs / "run/metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "grad_norm", "learning_rate", "reward_mean", "refill", "mismatch")
    return [tuple(line.get(name) for name in names) for line in lines]


# Everything that a step of stage 2 may move, draw again or leave out
EVERY_OPTION = [
    "vold.updates_per_step=2", "vold.offload.gradients=true", "vold.offload.optimizer=true", "rollout.sleep=true",
    "rollout.refill_rounds=2", "rollout.token_budget=150", "rollout.overlong=mask_policy", "objective.correction.mode=token",
    "reward.verifier=tests.rewards.own_verifiers:often",
]  # fmt: skip


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "stage, ranks, overrides",
    [
        pytest.param("sft", 1, ["sft.packing=true", "sft.micro_batch=1"], marks=pytest.mark.long),
        pytest.param("vold", 1, EVERY_OPTION, marks=pytest.mark.long),  # test_faults.py kills it in every phase
        pytest.param("sft", 2, ["parallel=tp2"], marks=pytest.mark.long),
        pytest.param("vold", 2, ["parallel.context=2"], marks=pytest.mark.long),
        pytest.param("vold", 2, ["parallel=tp2"], marks=pytest.mark.long),
        pytest.param("vold", 2, ["parallel=pp2"], marks=pytest.mark.long),
        pytest.param("vold", 2, ["parallel=dp2"], marks=pytest.mark.long),
        pytest.param("vold", 2, ["parallel=dp2", "precision=bf16", "vold.optimizer.distributed=true"], marks=pytest.mark.long),
    ],
)
def test_four_steps_equal_two_steps_a_kill_and_two_more(world, tmp_path, stage, ranks, overrides):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(world, stage, ranks, whole, *overrides)
    run_and_kill(broken, world, stage, ranks, broken, *overrides)
    run(world, stage, ranks, broken, *overrides)
    assert curve(broken) == curve(whole) and len(curve(whole)) == 4
    if overrides == EVERY_OPTION:
        assert sum(refilled["dropped_groups"] for *_, refilled, _ in curve(whole)) > 0
    assert shards(broken) == shards(whole)  # model and optimizer, byte for byte
    for a, b in zip(rank_states(whole), rank_states(broken), strict=True):
        assert torch.equal(a["random"]["torch"], b["random"]["torch"])
        assert a["schedule"] == b["schedule"] and a["extra"] == b["extra"]
        assert ("beta" in a["extra"]) == (stage == "vold")


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["sft", "vold"])
def test_a_run_killed_on_two_ranks_goes_on_on_one_where_resharding_is_asked_for(world, tmp_path, stage):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(world, stage, 2, whole, "parallel=tp2")
    run_and_kill(broken, world, stage, 2, broken, "parallel=tp2")
    refused = subprocess.run(command(world, stage, 1, broken), env=environment(), capture_output=True, text=True, timeout=400)
    assert refused.returncode == 2 and "checkpoint.reshard=true" in refused.stderr
    run(world, stage, 1, broken, "checkpoint.reshard=true")
    assert (broken / "run/student.nemo").exists()
    names = ("step", "loss", "grad_norm", "learning_rate", "reward_mean")
    for resumed, undisturbed in zip(curve(broken), curve(whole), strict=True):
        for name, a, b in zip(names, resumed, undisturbed, strict=False):
            assert a == b or a == pytest.approx(b, rel=1e-3, abs=1e-5), (undisturbed[0], name)


@pytest.mark.timeout(600)
def test_a_signal_ends_the_step_writes_a_checkpoint_and_leaves_with_85(world, tmp_path):
    arguments = command(world, "vold", 1, tmp_path, "vold.steps=500", "checkpoint.every=1000")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    metrics = tmp_path / "run/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 85, stderr[-3000:]
    done = len(metrics.read_text().splitlines())
    assert (tmp_path / f"run/checkpoints/step_{done}/manifest.json").exists()


def goes_on_with(world: Path, outputs: Path, *overrides: str) -> str:
    """One step of stage 1, then a second start under ``overrides``: what it says."""
    assert goes_on(world, outputs, 1) == ""
    return goes_on(world, outputs, 2, *overrides)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_second_run_in_the_folder_is_refused_and_ctrl_c_keeps_what_was_done(world, tmp_path):
    arguments = command(world, "sft", 1, tmp_path, "sft.steps=5000", "checkpoint.every=10000")
    first = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline, metrics = time.monotonic() + 400, tmp_path / "run/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    second = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=400)
    assert second.returncode == 2 and f"process {first.pid} on " in second.stderr and "run.lock" in second.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=200)
    assert first.returncode == 85, said[-3000:]
    assert "this step is finished" in said and "the same command again (python " in said
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and (tmp_path / f"run/checkpoints/step_{len(steps)}").is_dir()
    assert not (tmp_path / "run/run.lock").exists()
    for file in (tmp_path / "run/checkpoints").glob("step_*/shards/*.distcp"):
        os.truncate(file, 100)
    third = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=400)
    assert third.returncode == 2 and f"step_{len(steps)}: shards/" in third.stderr and "resume=never" in third.stderr
    assert len(metrics.read_text().splitlines()) == len(steps)


def test_a_run_goes_on_as_itself_unless_another_is_asked_for_and_its_archive_is_of_its_last_step(world, tmp_path, gloo):
    from vold_nemo.checkpoint import archive_file

    def start(*arguments) -> str:
        return gloo(1).run(goes_on, world, tmp_path, *arguments)[0]

    decay, accept = "sft.optimizer.weight_decay=0.5", "checkpoint.accept=[sft.optimizer]"
    archive = tmp_path / "run/student.nemo"
    assert start(1) == "" and archive_file.about(archive)["step"] == 1
    old = archive.read_bytes()
    said = start(2, decay)
    assert "checkpoint.accept=[sft.optimizer.weight_decay]" in said and "0.01 -> 0.5" in said
    assert "weight_decay: 0.01" in (tmp_path / "run/config.yaml").read_text()  # the refused one left nothing
    assert not (tmp_path / "run/attempts/attempt_2.json").exists()
    assert start(2, decay, accept) == ""
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["attempt"]) for line in lines] == [(1, 1), (2, 2)]
    new = archive_file.about(archive)
    assert (new["step"], new["attempt"]) == (2, 2)
    archive.write_bytes(old)  # killed between step 2 and its archive
    assert start(2, decay) == "" and archive_file.about(archive)["checkpoint"] == new["checkpoint"]


@pytest.mark.parametrize("harm", [lambda content: content[:700], lambda content: b"", lambda content: b"\x1f\x8b" + content])
def test_an_archive_that_cannot_be_read_is_of_no_step(harm, tmp_path):
    from vold_nemo.checkpoint import archive_file
    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.config import manifest
    from vold_nemo.models import resuming

    run, stage = Run(tmp_path, rank=0), tmp_path / "stage"
    stage.mkdir()
    (run.checkpoints / "step_2").mkdir(parents=True)
    said = manifest.sealed({"format": manifest.FORMAT, "step": 2, "layout": {}, "files": {}})
    (run.checkpoints / "step_2" / "manifest.json").write_text(json.dumps(said))
    archive_file.pack(stage, tmp_path / "student.nemo", {"step": 2, "checkpoint": said["digest"]})
    assert resuming.archive_is_of(run, 2) and not resuming.archive_is_of(run, 1)
    (tmp_path / "student.nemo").write_bytes(harm((tmp_path / "student.nemo").read_bytes()))
    assert not resuming.archive_is_of(run, 2)


def goes_on(world: Path, outputs: Path, steps: int, *overrides: str) -> str:
    """A start of stage 1 up to ``steps``: what it says if it is refused."""
    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.config import ConfigError
    from vold_nemo.megatron import parallel

    said = ""
    config = configuration(world, f"outputs={outputs}", "sft.max_length=64", f"sft.steps={steps}", *overrides)
    layout_of(config)
    model = build_sft(config)
    try:
        model.fit(Run(outputs / "run", rank=0, config=config))
    except ConfigError as error:
        said = str(error)
    parallel.destroy()
    return said


def test_a_position_in_other_data_is_refused(world, tmp_path, gloo):
    assert gloo(1).run(goes_on_with, world, tmp_path / "same", "sft.micro_batch=1") == [""]
    for number, change in enumerate(("seed=2", "sft.batch=4")):
        (said,) = gloo(1).run(goes_on_with, world, tmp_path / str(number), change)
        assert "the same rows, seed, batch size and mixture" in said, change
