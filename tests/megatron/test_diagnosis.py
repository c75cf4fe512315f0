"""recipes/doctor.py says what is here, and is not taken in by a package of the same name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vold_nemo.config import driver
from vold_nemo.megatron import diagnosis

ROOT = Path(__file__).parents[2]


def test_pypi_s_apex_is_not_taken_for_nvidia_s(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert diagnosis.apex().grade == diagnosis.NOTE  # neither
    (tmp_path / "apex.py").write_text("")
    assert diagnosis.apex().grade == diagnosis.BAD and "uninstall" in diagnosis.apex().follows
    (tmp_path / "amp_C.py").write_text("")
    assert diagnosis.apex().grade == diagnosis.GOOD and "fused Adam" in diagnosis.apex().what


def test_storage_is_measured_and_left_as_it_was(tmp_path):
    found = diagnosis.storage(tmp_path / "not" / "yet", mebibytes=1)
    assert found.grade == diagnosis.GOOD and "MiB/s" in found.what and not list(tmp_path.iterdir())


def test_storage_that_cannot_be_written_is_a_finding(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    found = diagnosis.storage(tmp_path / "not" / "yet", mebibytes=1)
    assert found.grade == diagnosis.BAD and found.what == f"{tmp_path}/not/yet: in {tmp_path}: Read-only file system"


def test_a_probe_that_breaks_is_a_finding():
    found = diagnosis.attempt("gpus", lambda: 1 / 0)
    assert [line.grade for line in found] == [diagnosis.BAD] and "division by zero" in found[0].what


def test_what_the_hardware_means_for_an_experiment_s_teacher(monkeypatch):
    from vold_nemo.config.compose import compose
    from vold_nemo.megatron import fp8
    from vold_nemo.megatron.architecture import read as architecture_of
    from vold_nemo.megatron.precision import Hardware

    def said(hardware, *overrides):
        monkeypatch.setattr(fp8, "hardware", lambda device: hardware)
        (line,) = diagnosis.teachers(compose(["teacher.path=Qwen/Qwen3-8B", *overrides]), None, architecture_of)
        return line.grade, line.what

    a100, h100 = Hardware("cuda", (8, 0), (2, 20), (12, 8)), Hardware("cuda", (9, 0), (2, 20), (12, 9))
    grade, what = said(a100)
    assert grade == diagnosis.GOOD and what.startswith("teacher in bf16")
    grade, what = said(h100)
    assert grade == diagnosis.GOOD and what.startswith("teacher in fp8 (blockwise")
    grade, what = said(a100, "teacher.precision=fp8")
    assert grade == diagnosis.BAD and "teacher.precision = fp8" in what
    assert said(h100, "teacher.path=nowhere")[0] == diagnosis.NOTE


@pytest.mark.parametrize(
    ("limits", "grade", "follows"),
    [((8192, 8192), diagnosis.GOOD, ""), ((1024, 8192), diagnosis.NOTE, "its own"), ((1024, 4096), diagnosis.BAD, "4,608"),
     ((-1, -1), diagnosis.GOOD, "")],
)  # fmt: skip
def test_open_files_are_counted_against_the_world(monkeypatch, limits, grade, follows):
    monkeypatch.setattr(diagnosis.resource, "getrlimit", lambda _: limits)
    found = diagnosis.open_files(1024)
    assert found.grade == grade and follows in found.follows and "needs up to 4,608" in found.what


def reduced():
    import torch

    return str(diagnosis.all_reduce(torch.device("cpu"), mebibytes=1, rounds=1))


def test_all_reduce_is_measured_between_ranks(gloo):
    assert all("2 ranks on cpu" in said and "GB/s" in said for said in gloo(2).run(reduced))


def test_why_torch_sees_no_gpu(monkeypatch):
    """A driver that is there, as ``_unseen`` meets it."""

    def said(cuda, newest, module="550.54.14"):
        monkeypatch.setattr(driver, "kernel_module", lambda: module)
        monkeypatch.setattr(driver, "newest_cuda", lambda: newest)
        found = diagnosis._unseen("2.13.0", cuda)
        return found.grade, found.follows

    assert said("13.0", None, None)[0] == diagnosis.NOTE
    assert said(None, (12, 4)) == (diagnosis.BAD, "this torch is a CPU build: slurm/build_gpu.sh makes an environment for GPUs")
    assert "for CUDA 12.4, torch for 13.0: take a driver from 580 on" in said("13.0", (12, 4))[1]
    assert "CUDA_VISIBLE_DEVICES" in said("12.9", (12, 4))[1] and "--nv" in said("12.9", None)[1]


@pytest.mark.long
def test_two_ranks_of_a_node_leave_one_json_document(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "recipes/doctor.py"),
         f"outputs={tmp_path}", "json=true"],
        capture_output=True, text=True, timeout=200, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert {"all-reduce", "node", "versions", "storage"} <= {line["topic"] for line in told["findings"]}
    assert told["code"] == 0 and told["versions"]["torch"].startswith("2.13")


@pytest.mark.parametrize("ranks", [pytest.param(1), pytest.param(2, marks=pytest.mark.long)])
def test_the_recipe_reports_this_machine(tmp_path, ranks):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "recipes/doctor.py"), f"outputs={tmp_path}", "device=auto"],
        capture_output=True, text=True, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    told = [line[8:] for line in done.stdout.splitlines()]
    for topic in ("teacher", "node", "GPU", "torch", "megatron-core", "transformer-engine", "vllm", "apex", "Slurm",
                  "open files", "storage"):
        assert any(line.startswith(topic) for line in told), done.stdout + done.stderr
    assert any(line.startswith(("versions", "vold-nemo")) for line in told)  # all fit, or whose wish is not met
    assert ("all-reduce" in done.stdout) == (ranks > 1)


def test_transformer_engine_is_told_once_where_its_packages_do_not_fit(monkeypatch):
    from vold_nemo.config import installed
    from vold_nemo.megatron import diagnosis, packages

    trouble = ("transformer-engine 2.20.2, transformer-engine-torch 2.19.0", "one version of both")
    for module, name in ((installed, "engine_trouble"), (diagnosis, "engine_trouble")):
        monkeypatch.setattr(module, name, lambda: trouble)
    lines = [one for one in (*diagnosis.libraries(), *packages.engine()) if one.topic == "transformer-engine"]
    assert [(one.grade, one.what) for one in lines] == [(diagnosis.BAD, trouble[0])]
