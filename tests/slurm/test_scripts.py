"""The launchers and the scripts that are made from a configuration: clean for shellcheck, whole in themselves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.stages import make_world
from tests.slurm.conftest import ROOT
from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.config.tree import spec_of
from vold_nemo.planning.launch import nodes, stages, write_chain, write_script

OVERRIDES = [
    "experiment=miniature", "parallel=tp2", "traces.shards=3", "cluster.gpus_per_node=2", "cluster.gpus.sft=4",
    "cluster.launch.account=a1", "cluster.launch.gres=gpu:h100", "cluster.launch.setup=['module load cuda', 'x=\"a b\"']",
    "++cluster.launch.environment.NCCL_SOCKET_IFNAME=ib0", "cluster.launch.options=['--exclusive']",
]  # fmt: skip


@pytest.fixture
def chain(tmp_path) -> dict[str, str]:
    here = tmp_path / "it's a place"
    here.mkdir()
    written = write_chain(compose(OVERRIDES), OVERRIDES, here)
    return {stage.name: path.read_text() for stage, path in written} | {"folder": str(written[0][1].parent)}


def test_every_stage_has_its_tasks_site_and_overrides(chain):
    assert list(chain) == ["traces", "sft", "export_sft", "vold", "export_vold", "evaluate", "report", "folder"]
    for line in ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--gres=gpu:h100:2", "--account=a1", "--exclusive"):
        assert f"#SBATCH {line}\n" in chain["sft"]
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks=2\n" in chain["vold"]  # one copy of the model: tensor 2
    assert "#SBATCH --array=0-2\n" in chain["traces"] and '"traces.shard=${SLURM_ARRAY_TASK_ID}"' in chain["traces"]
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in chain["sft"] and "checkpoints/latest" in chain["sft"]
    assert "~evaluate.models.sft_grpo" in chain["evaluate"]  # an arm that this chain does not train


def test_bash_reads_back_what_was_meant(chain, tmp_path):
    """The script's own text, with a stage.sbatch that prints what it was given."""
    root = tmp_path / "root"
    (root / "slurm").mkdir(parents=True)
    (root / "slurm/stage.sbatch").write_text('printf "%s\\n" "${VOLD_SETUP}" "${VOLD_LOGS}" "$@"')
    text = chain["sft"].replace(f"export VOLD_ROOT={ROOT}\n", f"export VOLD_ROOT={root}\n")
    said = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout.splitlines()
    logs = Path(chain["folder"]).parent / "logs"
    assert said == ["module load cuda", 'x="a b"', str(logs), "sft", *OVERRIDES]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck: apt-get install shellcheck")
def test_shellcheck_finds_nothing(chain):
    scripts = [*ROOT.glob("slurm/*.sh"), ROOT / "slurm/stage.sbatch", *ROOT.glob("tests/slurm/*.sh"), ROOT / ".ci/run"]
    scripts += Path(chain["folder"]).glob("*.sbatch")
    assert len(scripts) >= 12
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_plan_writes_the_script_that_the_chain_has(chain, tmp_path):
    here = Path(chain["folder"]).parents[2]
    asked = [*OVERRIDES, "sbatch=my scripts/stage.sbatch", "plan.stage=sft", "explain=true"]
    file = write_script(compose(asked), asked, here)
    assert file == here / "my scripts/stage.sbatch" and file.read_text() == chain["sft"]
    assert spec_of("plan.stage").choices == tuple(stage.name for stage in stages(compose(asked)))


def test_a_chain_whose_model_is_no_longer_as_prefetched_is_not_written(tmp_path):
    """The check that slurm/pipeline.sh begins with, in its own words, before anything could be queued."""
    make_world(tmp_path)
    arguments = [
        "experiment=miniature", f"student.path={tmp_path}/student", f"teacher.path={tmp_path}/teacher",
        f"data.prompts.path={tmp_path}/text.jsonl", "data.trace_prompts=null", "vold.validation.data=null",
        "vold.validation.text=null", "vold.validation.every=0",
        f"evaluate.text.path={tmp_path}/text.jsonl", f"evaluate.image.path={tmp_path}/image.parquet",
        f"outputs={tmp_path}/outputs",
    ]  # fmt: skip

    def call(recipe: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / f"recipes/{recipe}.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    fetched = call("prefetch")
    assert fetched.returncode == 0, fetched.stderr
    assert call("chain").returncode == 0
    weights = tmp_path / "teacher/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused = call("chain")
    assert refused.returncode == CONFIGURATION_ERROR
    assert "teacher.path" in refused.stderr and "has other contents" in refused.stderr


SRUN = """#!/usr/bin/env bash
printf '%s\\n' "cores=${SRUN_CPUS_PER_TASK}" "$@" >"${SAID}"
for option; do [[ "${option}" != --output=* ]] || logs="$(dirname -- "${option#--output=}")"; done
echo "1 0 0 here" >"${logs}/rank_0.exit"
"""


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_a_container_sees_the_folder_of_the_job_and_works_in_it(tmp_path, runtime):
    """Relative paths of a configuration start there.  In srun's place is a script that writes down what it was called with."""
    here, programs = tmp_path / "work place", tmp_path / "programs"
    here.mkdir()
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "srun").chmod(0o755)
    settings = {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_SUBMIT_DIR": str(here), "SLURM_CPUS_PER_TASK": "8",
        "VOLD_ROOT": str(ROOT), "VOLD_RUNTIME": runtime, "VOLD_CONTAINER": "/an image", "VOLD_MOUNTS": "/data:/data",
        "VOLD_SETUP": 'mine="${NEVER_SET}"',
    }  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "VOLD_"))}
    done = subprocess.run(
        ["bash", str(ROOT / "slurm/stage.sbatch"), "sft", "a=b"], cwd=here, capture_output=True, text=True, timeout=60,
        env={**inherited, **settings, "PATH": f"{programs}:{os.environ['PATH']}", "SAID": str(tmp_path / "said")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0] == "cores=8"  # srun does not take it over from the job by itself
    if runtime == "pyxis":
        assert f"--container-workdir={here}" in said and "--container-image=/an image" in said
        assert f",{here}:{here}," in next(word for word in said if word.startswith("--container-mounts=")) + ","
    else:
        assert said[said.index("--pwd") + 1] == str(here) and said[said.index("--pwd") + 2] == "/an image"
        assert said[said.index("--bind") + 1] == f"{ROOT},{here},/data:/data"
    assert said[-2:] == [str(ROOT / "recipes/sft.py"), "a=b"]


def test_ranks_fill_whole_nodes_and_a_container_needs_an_image(tmp_path):
    config = compose([*OVERRIDES, "cluster.gpus_per_node=4"])
    assert [nodes(config, tasks) for tasks in (1, 4, 12)] == [(1, 1), (1, 4), (3, 4)]
    with pytest.raises(ConfigError, match="fill whole nodes"):
        nodes(config, 6)
    assert {stage.tasks for stage in stages(config)} == {1, 2, 4}
    with pytest.raises(ConfigError, match=r"cluster\.launch\.container"):
        write_chain(compose([*OVERRIDES, "cluster.launch.runtime=pyxis"]), OVERRIDES, tmp_path)
