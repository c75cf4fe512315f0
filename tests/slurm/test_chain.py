"""slurm/pipeline.sh and the real recipes on a real Slurm, on tiny checkpoints, two nodes and two tensor-parallel ranks."""

import json
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import ENDED, ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
STAGES = ["traces", "sft", "export_sft", "vold", "export_vold", "evaluate", "report"]


@pytest.fixture
def pipeline(slurm, world, workplace):
    """``pipeline(*overrides, stages=)``: call slurm/pipeline.sh from a folder with a blank in its name."""

    def call(*overrides: str, stages: str = "", check: bool = True):
        return slurm.call(
            "bash", str(ROOT / "slurm/pipeline.sh"), "experiment=miniature", "name=tiny", "parallel=tp2",
            f"student.path={world}/student", f"teacher.path={world}/teacher", f"data.prompts.path={world}/text.jsonl",
            "data.trace_prompts=null", "traces.shards=2", "traces.max_tokens=64", "traces.batch=12",
            "vold.validation.data=null",
            "vold.validation.every=0", "logging.tensorboard=false", "sft.steps=4", "sft.batch=4", "sft.micro_batch=2",
            "sft.optimizer.warmup_steps=1", "vold.steps=4", "vold.prompts_per_step=4", "rollout.max_tokens=10",
            "checkpoint.every=1", "checkpoint.keep=9", "cluster.gpus_per_node=1", "cluster.launch.gres=gpu",
            "cluster.launch.time=30", f"evaluate.text.path={world}/text.jsonl", f"evaluate.image.path={world}/image.parquet",
            "evaluate.max_tokens=8", *overrides, cwd=workplace, check=check, environment={"STAGES": stages},
        )  # fmt: skip

    return call


def ids(said: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in said.splitlines() if not line.startswith("logs:")}


def wait_all(slurm, jobs: dict[str, str], seconds: float) -> dict[str, str]:
    return {name: slurm.wait(number, seconds)["JobState"] for name, number in jobs.items()}


def weights(run: Path, step: int) -> dict[str, str]:
    manifest = json.loads((run / f"checkpoints/step_{step}/manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".distcp")}


def logs(workplace: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted((workplace / "outputs/tiny/logs").glob("*.out")))


def test_the_chain_goes_to_its_report_and_called_again_has_nothing_to_do(slurm, pipeline, workplace, world):
    # The tiny teacher is random: its answers rarely end by themselves, so stage 1 trains on written traces.
    first = pipeline(stages="traces")
    assert wait_all(slurm, ids(first.stdout), 600) == {"traces": "COMPLETED"}, logs(workplace)
    shards = sorted(path.name for path in (workplace / "outputs/tiny/traces").glob("traces.*.jsonl"))
    assert shards == ["traces.0-of-2.jsonl", "traces.1-of-2.jsonl"]

    rest = " ".join(STAGES[1:])
    trained = (f"traces.path={world}/traces.jsonl", "traces.shards=1")
    jobs = ids(pipeline(*trained, stages=rest).stdout)
    assert list(jobs) == STAGES[1:]
    assert jobs == ids(pipeline(*trained, stages=rest).stdout)  # still queued: left alone
    assert set(wait_all(slurm, jobs, 1500).values()) == {"COMPLETED"}, logs(workplace)
    assert "n[1-2], 2 tasks" in logs(workplace)
    results = json.loads((workplace / "outputs/tiny/evaluation/results.json").read_text())
    assert set(results["accuracy"]) == {"base", "sft", "sft_vold"}
    assert (workplace / "outputs/tiny/report.html").stat().st_size > 10_000
    assert set(ids(pipeline(*trained, stages=rest).stdout).values()) == {"done"}

    other = (*trained, "evaluate.max_tokens=9", "cluster.launch.time=31")  # the evaluation's, and one of no stage's result
    before = {path: path.read_bytes() for path in (workplace / "outputs/tiny/slurm").iterdir()}
    said = pipeline("--diff", *other, stages=rest).stdout.splitlines()
    assert [line.split()[0] for line in said if " done" in line] == STAGES[1:5]
    assert "evaluate     would be submitted: evaluate.max_tokens 8 -> 9" in said
    assert before == {path: path.read_bytes() for path in (workplace / "outputs/tiny/slurm").iterdir()}
    again = ids(pipeline(*other, stages=rest).stdout)
    assert [again[name] for name in STAGES[1:5]] == ["done"] * 4
    assert wait_all(slurm, {name: again[name] for name in STAGES[5:]}, 600) == dict.fromkeys(STAGES[5:], "COMPLETED")


def test_a_stage_that_fails_cancels_the_rest(slurm, pipeline, workplace, tmp_path):
    (tmp_path / "broken.jsonl").write_text("no trace\n")
    broken = (f"traces.path={tmp_path}/broken.jsonl", "traces.shards=1")
    jobs = ids(pipeline(*broken, stages="sft export_sft vold").stdout)
    assert wait_all(slurm, jobs, 600) == {"sft": "FAILED", "export_sft": "CANCELLED", "vold": "CANCELLED"}
    assert slurm.code(jobs["sft"]) == 2
    assert "failed first, with 2" in logs(workplace) and "traces.path" in logs(workplace)


def test_a_changed_stage_waits_for_the_end_of_the_job_whose_place_it_takes(slurm, pipeline, workplace, world):
    trained = (f"traces.path={world}/traces.jsonl", "traces.shards=1")
    first = ids(pipeline(*trained, "sft.steps=4000", stages="sft").stdout)["sft"]
    slurm.wait(first, 300, until=lambda record: record["JobState"] == "RUNNING")
    said = pipeline(*trained, "sft.steps=3", stages="sft").stdout
    second = ids(said)["sft"]
    assert second != first and f"once {first} has ended (sft.steps 4000 -> 3)" in said
    record = slurm.wait(second, 600)
    assert record["JobState"] == "COMPLETED", logs(workplace)
    assert record["StartTime"] >= slurm.job(first)["EndTime"] and slurm.job(first)["JobState"] == "CANCELLED"


@pytest.mark.parametrize(
    "override, message",
    [
        ("cluster.launch.partition=nowhere", "invalid partition specified: nowhere"),
        ("sft.batsh=3", "sft.batsh"),
        ("cluster.gpus.sft=4 cluster.gpus_per_node=3", "fill whole nodes"),
        ("traces.path=/nowhere.jsonl", "traces.path"),
        ("cluster.launch.signal_seconds=30", "cluster.launch.signal_seconds"),
    ],
)
def test_a_mistake_is_said_before_anything_is_queued(slurm, pipeline, override, message):
    done = pipeline(*override.split(), stages="sft", check=False)
    assert done.returncode == 2 and message in done.stderr
    assert not slurm.call("squeue", "--noheader").stdout


def test_a_stage_that_does_not_exist_is_no_empty_chain(slurm, pipeline):
    done = pipeline(stages="vodl", check=False)
    assert done.returncode == 2 and "chain.stages = 'vodl'" in done.stderr


@pytest.fixture
def stage(slurm, pipeline, workplace, world):
    """``stage(name, run)``: submit stage 1 or 2 alone, on the written traces and the untrained student; its job."""

    def submit(name: str, run: str) -> tuple[str, Path]:
        said = pipeline(
            f"traces.path={world}/traces.jsonl", "traces.shards=1", f"vold.start={world}/student", f"{name}.run={run}",
            stages=name,
        )  # fmt: skip
        return ids(said.stdout)[name], workplace / "outputs" / run

    return submit


@pytest.mark.parametrize(
    "name, how, sign",
    [
        ("sft", "USR1", "checkpoints/step_1"),  # a step takes a moment, and the signal has a way to go
        ("vold", "USR1", "checkpoints/step_2"),
        ("vold", "node", "checkpoints/step_2"),  # somewhere in step 3
        ("sft", "node", "checkpoints/step_3.tmp"),  # while the thread writes a checkpoint
        ("vold", "node", "checkpoints/step_3.tmp"),
    ],
)
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(slurm, stage, workplace, name, how, sign):
    number, whole = stage(name, "whole")
    assert slurm.code(number, 600) == 0
    number, broken = stage(name, "broken")
    deadline = time.monotonic() + 600
    while not (broken / sign).exists():
        assert slurm.job(number)["JobState"] not in ENDED and time.monotonic() < deadline
        time.sleep(0.02)
    if how == "USR1":
        slurm.call("scancel", "--batch", "--signal=USR1", number)
    else:
        slurm.control("kill", "n2")
        slurm.wait(number, 120, until=lambda record: record["JobState"] == "PENDING")
        slurm.revive("n2")
    record = slurm.wait(number, 600)
    # A node that comes back may be sent what was meant for the attempt before, and end the next one, too.
    restarts = ("1", "2") if how == "node" else ("1",)
    assert record["JobState"] == "COMPLETED" and record["Restarts"] in restarts, logs(workplace)
    assert weights(broken, 4) == weights(whole, 4) and weights(whole, 4)
