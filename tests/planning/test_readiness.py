"""A node without what a run on GPUs takes is refused in the first second: drivers, GPUs and packages are played."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vold_nemo.config import Config, driver, installed
from vold_nemo.config.compose import compose
from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.planning.readiness import findings, means_gpus, ranks_here

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config() -> Config:
    return compose(["experiment=paper_3b", "device=cuda"])


@pytest.fixture
def node(monkeypatch, tmp_path):
    """``node(**facts)``: a node with these; without one, four GPUs, driver 580 and torch for CUDA 13.0."""

    def make(cuda=(13, 0), module: str | None = "580.82.07", newest=(13, 0), gpus: int | None = 4, **versions: str):
        monkeypatch.setattr(installed, "torch_cuda", lambda: cuda)
        monkeypatch.setattr(driver, "kernel_module", lambda: module)
        monkeypatch.setattr(driver, "newest_cuda", lambda: newest)
        monkeypatch.setattr(driver, "gpus", lambda: gpus)
        site = tmp_path / "site"
        shutil.rmtree(site, ignore_errors=True)
        for name, version in versions.items():
            distribution(site, name.replace("_", "-"), version)
        monkeypatch.setattr(sys, "path", [str(site), *sys.path])
        monkeypatch.setattr(sys, "prefix", str(tmp_path))

    return make


def distribution(site: Path, name: str, version: str, *requires: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    wanted = "".join(f"Requires-Dist: {line}\n" for line in requires)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{wanted}")


def told(config: Config, verb: str = "sft", **environment: str) -> str:
    return "\n".join(map(str, findings(config, verb, environment)))


def test_a_node_that_has_everything_is_not_spoken_of(config, node):
    node()
    assert told(config) == ""
    assert told(config, LOCAL_WORLD_SIZE="4") == told(config, SLURM_STEP_TASKS_PER_NODE="4(x2)", SLURM_GPUS_ON_NODE="4") == ""
    node(cuda=(12, 9), newest=(12, 4), module="550.54.14")  # minor versions of CUDA 12 run on every driver of CUDA 12
    assert told(config) == ""


@pytest.mark.parametrize(
    ("facts", "parts"),
    [
        ({"cuda": None}, ["device = 'cuda'", "built for CUDA", "slurm/build_gpu.sh", "device=cpu"]),
        ({"module": None, "newest": None}, ["NVIDIA driver = 'none'", "cluster.launch.gres"]),
        ({"newest": None}, ["580.82.07", "without libcuda.so.1", "apptainer --nv"]),
        ({"newest": (12, 4), "module": "550.54.14"}, ["550.54.14", "580 or newer", "CUDA 13.0", "CUDA=12.9", "cuda-compat"]),
        ({"newest": (11, 4), "cuda": (12, 9)}, ["525 or newer", "CUDA 12.9"]),
        ({"gpus": 0}, ["sees = '0'", "at least one"]),
    ],
)
def test_what_is_between_torch_and_the_gpus_is_named_with_the_way_out(config, node, facts, parts):
    node(**facts)
    said = told(config)
    assert all(part in said for part in parts), said
    assert said.count("mend:") == 1


@pytest.mark.parametrize(
    ("gpus", "environment", "ranks"),
    [
        (4, {"LOCAL_WORLD_SIZE": "8"}, "= 8"),
        (1, {"LOCAL_WORLD_SIZE": "2"}, "= 2"),
        (4, {"LOCAL_WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "0,1"}, "= 4"),
        (4, {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, "= 8"),
        (1, {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "1"}, "= 4"),
        (1, {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "4"}, ""),  # each task has been given its own
        (1, {"SLURM_STEP_TASKS_PER_NODE": "4"}, ""),  # nobody says how many there are
        (None, {"LOCAL_WORLD_SIZE": "8"}, ""),
    ],
)
def test_every_rank_of_a_node_has_a_gpu_of_its_own(config, node, gpus, environment, ranks):
    node(gpus=gpus)
    said = told(config, **environment)
    assert ("ranks on a node" in said and ranks in said) if ranks else said == ""


def test_packages_that_are_not_of_one_piece_are_named(config, node, tmp_path):
    engine = {"transformer_engine": "2.20.2", "transformer_engine_torch": "2.20.2"}
    node(**engine, transformer_engine_cu13="2.20.2")
    assert told(config) == ""
    node(**engine, transformer_engine_cu13="2.19.0")
    assert "transformer-engine-cu13 2.19.0" in told(config) and "one version" in told(config)
    node(**engine, transformer_engine_cu12="2.20.2")
    assert "transformer-engine-cu12 with a torch for CUDA 13.0" in told(config)
    node(**engine)
    assert "without its core" in told(config)
    node()
    (tmp_path / installed.COMPILED).write_text('{"torch": "2.12.1", "transformer-engine-torch": "2.20.2"}')
    assert "transformer-engine-torch 2.20.2 compiled for torch 2.12.1" in told(config)


def test_vllm_is_asked_about_its_torch_where_it_is_used(config, node, tmp_path):
    node()
    config = replace(config, rollout=replace(config.rollout, engine="vllm"))
    distribution(tmp_path / "site", "vllm", "0.33.0", "torch==2.14.0", "transformers>=5.16", 'zentorch; extra == "zen"')
    assert told(config, "sft") == ""
    assert "0.33.0 wants torch==2.14.0 (" in told(config, "vold")
    assert installed.unmet("vllm") == installed.unmet("vllm", "torch") and len(installed.unmet("vllm")) == 1


def test_who_means_the_cpu_is_left_alone(config, node):
    auto = replace(config, device="auto")
    node()
    assert means_gpus(auto, "sft", {}) and not means_gpus(auto, "sft", {"CUDA_VISIBLE_DEVICES": ""})
    assert means_gpus(auto, "sft", {"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "0,1"})
    node(cuda=None)
    assert not means_gpus(auto, "sft", {})  # a workstation with a CPU build of torch
    assert means_gpus(auto, "sft", {"SLURM_GPUS_ON_NODE": "4"})
    assert "device = 'auto, in a job that was given GPUs'" in told(auto, SLURM_GPUS_ON_NODE="4")
    assert not means_gpus(replace(config, device="cpu"), "sft", {"SLURM_JOB_GPUS": "0"})
    assert means_gpus(config, "generate_traces", {})
    sets_own = replace(config, traces=replace(config.traces, engine="dataset"))  # no teacher answers
    assert not means_gpus(sets_own, "generate_traces", {})


def test_ranks_of_a_node_as_the_launchers_tell_them():
    assert ranks_here({"LOCAL_WORLD_SIZE": "8"}) == 8 and ranks_here({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}) == 4
    unequal = {"SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_PROCID": "5", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_ID": "0",
               "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "1"}  # fmt: skip
    assert ranks_here(unequal) == 2


LIBRARY = """
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
"""


@pytest.fixture(scope="module")
def old_node(tmp_path_factory) -> Path:
    """A driver for CUDA 12.4 with two GPUs, and a torch for CUDA 13.0, which must not be imported."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "driver.c").write_text(LIBRARY)
    for name in (driver.CUDA, driver.MANAGEMENT):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / name, folder / "driver.c"], check=True, timeout=60)
    distribution(folder, "torch", "2.13.0")
    for package in ("torch", "nemo", "transformers"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("raise SystemExit('imported too early')")
    (folder / "torch" / "version.py").write_text("from typing import Optional\ncuda: Optional[str] = '13.0'\n")
    return folder


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("verb", [
    "sft", "evaluate", pytest.param("vold", marks=pytest.mark.long), pytest.param("generate_traces", marks=pytest.mark.long),
])  # fmt: skip
def test_every_recipe_that_computes_refuses_before_it_imports(tmp_path, world, old_node, verb):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANK", "WORLD", "LOCAL_"))}
    inherited.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, str(ROOT / f"recipes/{verb}.py"), "experiment=miniature", "device=cuda",
         f"student.path={world}/student", f"teacher.path={world}/teacher", f"traces.path={world}/traces.jsonl",
         f"vold.start={world}/student"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={**inherited, "LD_LIBRARY_PATH": str(old_node), "PYTHONPATH": f"{old_node}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == CONFIGURATION_ERROR, done.stderr
    assert "NVIDIA driver = 'unknown, for CUDA 12.4'" in done.stderr and "580 or newer" in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


@pytest.mark.long
def test_the_first_rank_of_each_node_speaks_of_its_own_node(tmp_path, world):
    """The real command, as the first rank of a second node and as its neighbour; this torch is a CPU build or has no driver."""
    said = {}
    for local in ("0", "1"):
        ranks = {"RANK": f"{2 + int(local)}", "WORLD_SIZE": "4", "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": "2"}
        done = subprocess.run(
            [sys.executable, str(ROOT / "recipes/evaluate.py"), "experiment=miniature", "device=cuda"],
            capture_output=True, text=True, timeout=120, cwd=tmp_path,
            env={**os.environ, **ranks, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == CONFIGURATION_ERROR, done.stderr
        said[local] = done.stderr
    assert said["0"].count("error:") == 1 and said["1"] == ""


@pytest.mark.parametrize(
    ("named", "left", "hidden", "why"),
    [
        ("0,1", 2, False, None), ("3,0,9,1", 2, False, None), ("GPU-aa,MIG-bb", 2, False, None), ("1gpu", 1, False, None),
        ("abc", 0, False, "all GPUs are hidden: abc"), ("0,0", 0, False, "named twice"), ("0,x,1", 1, False, "from x on"),
        ("-1", 0, True, None), ("-1,0", 0, True, "all GPUs are hidden: -1"), ("", 0, True, None),
    ],
)  # fmt: skip
def test_visible_devices_are_read_as_cuda_reads_them(monkeypatch, named, left, hidden, why):
    from vold_nemo.megatron import diagnosis

    env = {"CUDA_VISIBLE_DEVICES": named}
    assert (driver.visible(4, env), driver.hidden(env)) == (left, hidden)
    said = driver.misread(env)
    assert said is None if why is None else why in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(driver, "kernel_module", lambda: "580.82.07")
    grades = [one.grade for one in diagnosis.chosen()]
    assert grades == ([] if why is None else [diagnosis.NOTE if hidden else diagnosis.BAD])


def test_gpus_that_are_hidden_on_purpose_mean_the_cpu_and_a_slip_does_not(config, node):
    node()
    auto = replace(config, device="auto")
    assert told(auto, CUDA_VISIBLE_DEVICES="-1,0") == ""
    for slip in ("abc", "0,0"):
        assert f"0 of 4, CUDA_VISIBLE_DEVICES={slip}" in told(auto, CUDA_VISIBLE_DEVICES=slip)


def test_rates_that_nothing_has_are_refused():
    from vold_nemo.planning.validity import findings as of

    keys = [error.key for error in of(compose(["cluster=h100", "cluster.storage_gbs=1e-300"]), "chain")]
    assert keys == ["cluster.storage_gbs"]


def test_a_world_that_is_made_on_a_cpu_is_not_asked_of_a_gpu(tmp_path):
    command = [sys.executable, str(ROOT / "recipes/prepare_miniature.py"), "experiment=miniature", "device=cuda"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, f"outputs={tmp_path}"], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == CONFIGURATION_ERROR and "auto | cpu" in done.stderr and not list(tmp_path.rglob("teacher*"))
