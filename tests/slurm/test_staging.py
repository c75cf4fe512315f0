"""Weights staged to two nodes of a real Slurm: ranks wait for the copies, read them, and are as right as without."""

import json
import shutil

import pytest

from tests.models.stages import make_world
from tests.planning.test_staging import split_by_layer
from tests.slurm.conftest import ROOT

STUB = """
verb, rank = os.path.basename(sys.argv[0]), os.environ["SLURM_PROCID"]
if verb == "stage_weights.py":
    print(sys.argv[1:], os.environ["SLURM_NODEID"], os.environ["VOLD_RANKS"], os.environ["SLURM_STEP_NUM_NODES"], flush=True)
    if os.path.exists("no_room") and rank == "1":
        print("error: too little", flush=True)
        sys.exit(2)
    time.sleep(300.0 if os.path.exists("hangs") else 1.0)
    open(f"staged_{rank}", "w").close()
else:
    print("whole" if os.path.exists("staged_0") and os.path.exists("staged_1") else "too early", flush=True)
"""


@pytest.fixture
def staging(slurm, repository, workplace):
    """``staging(minutes)``: a job of a stub on two nodes with two ranks each, its weights staged."""

    def submit(minutes: str = "5"):
        script = repository("vold", STUB)
        shutil.copy(script.parent.parent / "recipes/vold.py", script.parent.parent / "recipes/stage_weights.py")
        options = ("--nodes=2", "--ntasks-per-node=2", "--time=5")
        settings = {"VOLD_STAGE": "$TMPDIR/x", "VOLD_STAGE_MINUTES": minutes}
        return slurm.submit(*options, str(script), "vold", "a key=a value", cwd=workplace, **settings)

    return submit


@pytest.mark.long
def test_ranks_start_when_every_node_has_its_weights(slurm, staging, workplace):
    number = staging()
    assert slurm.code(number) == 0, (workplace / "job.out").read_text()
    logs = workplace / "logs" / number / slurm.job(number)["Restarts"]  # a slow node may have been given up once
    assert [(logs / f"rank_{rank}.log").read_text() for rank in range(4)] == ["whole\n"] * 4
    told = [(logs / f"staging/rank_{node}.log").read_text() for node in range(2)]
    assert told == [f"['a key=a value', 'staging.verb=vold'] {node} 4 2\n" for node in range(2)]


def test_no_rank_starts_where_a_node_has_no_room(slurm, staging, workplace):
    (workplace / "no_room").touch()
    number = staging()
    assert slurm.code(number) == 2 and slurm.job(number)["Restarts"] == "0"
    said = (workplace / "job.out").read_text()
    assert "rank 1 on n2 failed first, with 2" in said and said.rstrip().endswith("error: too little")
    assert not list((workplace / "logs" / number / "0").glob("rank_*.log"))


@pytest.mark.long
def test_a_copy_that_never_comes_back_is_ended_and_no_rank_starts(slurm, staging, workplace):
    (workplace / "hangs").touch()
    number = staging("0.05")
    assert slurm.code(number) not in (0, 85) and slurm.job(number)["Restarts"] == "0"
    assert not list((workplace / "logs" / number / "0").glob("rank_*.log"))


@pytest.fixture
def chain(slurm, workplace, tmp_path):
    """``chain(run, *more)``: stage 2 on two pipeline stages, one a node, through slurm/pipeline.sh; (job, run folder)."""
    make_world(tmp_path / "world")
    split_by_layer(tmp_path / "world/teacher")

    def submit(run: str, *more: str):
        world = tmp_path / "world"
        said = slurm.call(
            "bash", str(ROOT / "slurm/pipeline.sh"), "experiment=miniature", "name=tiny", "parallel.pipeline=2",
            f"student.path={world}/student", f"teacher.path={world}/teacher", f"vold.start={world}/student",
            f"data.prompts.path={world}/text.jsonl", "vold.validation.data=null", "vold.validation.every=0", f"vold.run={run}",
            "logging.tensorboard=false", "vold.steps=2", "vold.prompts_per_step=4", "rollout.max_tokens=10",
            "checkpoint.every=1", "cluster.gpus_per_node=1", "cluster.launch.gres=gpu", "cluster.launch.time=30", *more,
            cwd=workplace, environment={"STAGES": "vold"},
        )  # fmt: skip
        return said.stdout.split()[1], workplace / "outputs" / run

    return submit


def weights(run):
    manifest = json.loads((run / "checkpoints/step_2/manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".distcp")}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_staged_run_reads_copies_and_ends_as_one_that_is_not_staged(slurm, chain, workplace, tmp_path):
    number, plain = chain("plain")
    assert slurm.code(number, 600) == 0
    number, run = chain("staged", f"cluster.launch.stage={tmp_path}/disk/$SLURMD_NODENAME")
    assert slurm.code(number, 600) == 0, "\n".join(path.read_text()[-2000:] for path in workplace.rglob("*.out"))
    assert weights(run) == weights(plain) and weights(plain)
    for node, left in (("n1", "23"), ("n2", "01")):  # layers of the other pipeline stage
        (copy,) = (tmp_path / "disk" / node).glob("teacher.*")
        assert {file.name for file in copy.iterdir() if file.is_symlink()} == {f"layer-{n}.safetensors" for n in left}
    configuration, lineage = (run / "config.yaml").read_text(), (run / "lineage.json").read_text()
    assert f"{tmp_path}/world/teacher" in configuration and f"{tmp_path}/disk/" in configuration  # the key alone
    assert configuration.count(f"{tmp_path}/disk") == 1 and "disk" not in lineage
    logs = "".join(path.read_text() for path in workplace.rglob("staging/rank_*.log"))
    assert "teacher.path: " in logs and "GB copied in" in logs

    # a second attempt of the same job finds its copies; another kind of failure is told with its way out
    (tmp_path / "disk/n2").rename(tmp_path / "disk/other")
    (tmp_path / "disk/n2").touch()
    number, _ = chain("again", f"cluster.launch.stage={tmp_path}/disk/$SLURMD_NODENAME")
    assert slurm.code(number, 300) == 2
    said = "".join(path.read_text() for path in workplace.rglob(f"vold-{number}.out"))
    assert "on n2: cluster.launch.stage = " in said and "a path that can be written" in said
