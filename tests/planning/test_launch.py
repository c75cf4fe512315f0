"""The script of the trace stage: which GPUs a task gets, and by which file the batch script sees progress."""

import re
import subprocess
from pathlib import Path

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.config.places import slurm
from vold_nemo.data.traces import shard_path
from vold_nemo.planning import profiling
from vold_nemo.planning.launch import script, stages, write_script
from vold_nemo.planning.validity import findings


@pytest.mark.parametrize(
    ("gpus", "shards", "engine", "tasks", "gres"), [(1, 1, 1, 1, 1), (8, 1, 1, 8, 4), (4, 3, 2, 2, 4), (8, 1, 4, 2, 4)]
)
def test_a_tracing_job_watches_the_first_shard_that_it_writes(tmp_path, gpus, shards, engine, tasks, gres):
    config = compose([
        "cluster=my_site", f"cluster.gpus.traces={gpus}", f"traces.shards={shards}", f"traces.tensor_parallel={engine}",
        "traces.engine=vllm", "outputs=out",
    ])  # fmt: skip
    stage = stages(config)[0]
    text = script(config, stage, [], folder=tmp_path, here=tmp_path)
    assert stage.tasks == tasks and f"--gres=gpu:{gres}\n" in text
    for index in range(shards):
        exports = "\n".join(re.findall(r"^export VOLD_PROGRESS=.*$", text, re.MULTILINE))
        shown = subprocess.run(
            ["bash", "-c", f'SLURM_ARRAY_TASK_ID={index}\n{exports}\necho "$VOLD_PROGRESS"'], capture_output=True, text=True
        )
        written = shard_path(Path("out/vold/traces/traces.jsonl"), index * tasks, shards * tasks)
        assert shown.stdout.strip() == str(tmp_path / written)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (["traces.engine=dataset", "traces.verify=true"], "traces.verify"),
        (["traces.tensor_parallel=2"], "traces.tensor_parallel"),
        (["traces.tensor_parallel=3", "traces.engine=vllm", "cluster=my_site"], "traces.tensor_parallel"),
        (["traces.engine=sglang"], "traces.engine"),
    ],
)
def test_settings_of_traces_that_exclude_each_other_are_named(given, key):
    assert key in {error.key for error in findings(compose(given), "generate_traces")}
    assert not any(error.key.startswith("traces") for error in findings(compose(["traces.engine=vllm"]), "generate_traces"))


@pytest.mark.parametrize(("given", "key"), [("sbatch=file/vold.sbatch", "sbatch"), ("outputs=file/out", "outputs")])
def test_a_script_that_cannot_be_written_is_an_error_of_its_key(tmp_path, given, key):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a path that can be written") as error:
        write_script(compose(["cluster=my_site", "sbatch=vold.sbatch", given]), [], tmp_path)
    assert error.value.key == key


def test_a_sites_interface_and_adapters_become_what_nccl_reads(tmp_path):
    config = compose(["cluster=my_site", "cluster.launch.interface='=ib0'", "cluster.launch.hca='mlx5_0:1,mlx5_1:1'"])
    text = script(config, stages(config)[1], [], folder=tmp_path, here=tmp_path)
    exports = [line for line in text.splitlines() if line.startswith("export NCCL_")]
    said = subprocess.run(
        ["bash", "-c", "\n".join(exports) + '\necho "$NCCL_SOCKET_IFNAME $NCCL_IB_HCA"'], capture_output=True, text=True
    )
    assert said.stdout == "=ib0 mlx5_0:1,mlx5_1:1\n"
    assert not findings(config, "export_hf")


def test_weights_are_staged_for_the_stages_whose_ranks_read_the_same_and_by_the_nodes_own_variables(tmp_path):
    config = compose(["cluster=my_site", "cluster.launch.stage=/scratch/$SLURM_JOB_ID", "cluster.launch.stage_minutes=7.5"])
    texts = {stage.name: script(config, stage, [], folder=tmp_path, here=tmp_path) for stage in stages(config)}
    assert {name for name, text in texts.items() if "VOLD_STAGE" in text} == {"traces", "sft", "vold"}
    assert "export VOLD_STAGE='/scratch/$SLURM_JOB_ID'\nexport VOLD_STAGE_MINUTES=10\n" in texts["vold"]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (["cluster.launch.stage=scratch"], "cluster.launch.stage"),
        (["cluster.launch.stage_minutes=0"], "cluster.launch.stage_minutes"),
        (["cluster.storage_gbs=-1"], "cluster.storage_gbs"),
        (["cluster.launch.interface='eth0,^lo'"], "cluster.launch.interface"),
        (["cluster.launch.hca=''"], "cluster.launch.hca"),
        (["cluster.launch.hca=mlx5", "++cluster.launch.environment.NCCL_IB_DISABLE='1'"], "cluster.launch.hca"),
        (["++cluster.launch.environment.NCCL_SOCKET_IFNAM=ib0"], "cluster.launch.environment.NCCL_SOCKET_IFNAM"),
        (["cluster.launch.interface=ib0", "++cluster.launch.environment.NCCL_SOCKET_IFNAME=eth0"],
         "cluster.launch.environment.NCCL_SOCKET_IFNAME"),
    ],
)  # fmt: skip
def test_a_site_that_contradicts_itself_is_refused_on_the_login_node(given, key):
    assert [error.key for error in findings(compose(["cluster=my_site", *given]), "export_hf")] == [key]


def test_ranks_are_started_under_nsight_systems_for_the_stages_that_have_steps_to_look_into(tmp_path):
    config = compose(["experiment=miniature", "cluster=my_site", "profile.steps=[3,4]", "profile.tool=nsys"])
    texts = {stage.name: script(config, stage, [], folder=tmp_path, here=tmp_path) for stage in stages(config)}
    assert {name for name, text in texts.items() if "VOLD_NSYS" in text} == {"sft", "vold"}
    assert f"export VOLD_NSYS={tmp_path}/outputs/miniature/sft/profile/steps_3-4\n" in texts["sft"]
    stage = (slurm() / "stage.sbatch").read_text()
    for option in profiling.nsys_line(tmp_path, "SLURM_PROCID").split()[:-1]:  # said in both places
        assert option in stage[stage.index("under=(nsys") :]


@pytest.mark.parametrize(
    ("nodes", "copy", "said"),
    [(4, 2, "--nodes=4 --ntasks=16"), (3, 2, "--nodes=3 --ntasks=12"), (3, 8, "--nodes=2 --ntasks=8"), (3, 16, None)],
)
def test_as_many_whole_copies_run_as_the_nodes_hold(tmp_path, nodes, copy, said):
    """The lines of stage.sbatch, for nodes of four tasks."""
    text = (slurm() / "stage.sbatch").read_text()
    lines = text[text.index('tasks="${SLURM_NTASKS:-1}"') : text.index('say "${verb} on')]
    variables = f"SLURM_JOB_NUM_NODES={nodes} SLURM_NTASKS_PER_NODE=4 VOLD_COPY={copy}"
    program = f'die() {{ echo "$2"; exit "$1"; }}\nexport {variables}\n{lines}\necho "${{across[@]}}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    if said is None:
        assert done.returncode == 2 and "hold no copy of the model, which takes 16" in done.stdout
    else:
        assert done.stdout.strip() == f"{said} --ntasks-per-node=4"
