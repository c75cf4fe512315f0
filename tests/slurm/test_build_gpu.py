"""slurm/build_gpu.sh with stand-ins for interpreter, nvcc and disk: what it would run, and what it refuses to begin with."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT
from vold_nemo.config import installed

# Writes down what it is called with, and in which environment what compiles; plays the answers that the script asks for.
INTERPRETER = """#!/usr/bin/env bash
printf '%q ' "$@" >>"${SAID}"
if [[ "$*" == *no-build-isolation* ]]; then
  printf '%q ' "## ${CPATH} $(env | grep -E '^(NVTE|APEX_C|MAX_JOBS|TORCH_CUDA|PIP_C)' | sort)" >>"${SAID}"
fi
echo >>"${SAID}"
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-c "*version_info*) echo "${FAKE_PYTHON:-3.12}" ;;
  "-c "*ensurepip*) exit "${FAKE_LACKS:-0}" ;;
  "-c "*torch.version.cuda*) echo "${FAKE_TORCH:-13.0}" ;;
  "- ") cat >/dev/null; echo /site/nvidia/cudnn/include ;;
esac
"""
PROGRAMS = {
    "python3": INTERPRETER,
    "nvcc": '#!/bin/sh\necho "Cuda compilation tools, release ${FAKE_NVCC:-13.0}, V13.0.88"\n',
    "df": '#!/bin/sh\nprintf "Avail\\n${FAKE_FREE:-99000000}\\n"\n',
    "getconf": '#!/bin/sh\necho "glibc ${FAKE_GLIBC:-2.39}"\n',
    "uname": '#!/bin/sh\necho "Linux ${FAKE_MACHINE:-x86_64}"\n',
}


@pytest.fixture
def build(tmp_path):
    """``build(without=(), **environment)``: run the script; the finished process and the lines that it would have run."""

    def run(*, without=(), **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        programs = tmp_path / "programs"
        programs.mkdir(exist_ok=True)
        for name, text in PROGRAMS.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        for name in without:
            (programs / name).unlink()
        said = tmp_path / "said"
        said.write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "slurm/build_gpu.sh"), str(tmp_path / "an environment")],
            env={"PATH": f"{programs}:/usr/bin:/bin", "SAID": str(said), "HOME": str(tmp_path), **environment},
            capture_output=True, text=True, timeout=60, cwd=tmp_path,
        )  # fmt: skip
        return done, [line for line in said.read_text().splitlines() if not line.startswith(("-c ", "- "))]

    return run


def options(line: str) -> list[str]:
    """The words of a pip install, which pip itself must understand."""
    from pip._internal.commands import create_command

    words = shlex.split(line.split(r"\#\#")[0].split("$'##")[0])
    assert words[:3] == ["-m", "pip", "install"], line
    create_command("install").parse_args(words[3:])
    return words[3:]


def test_every_step_for_cuda_13_is_under_the_pins(build, tmp_path):
    done, lines = build(PIP_CONSTRAINT="/etc/pip/constraint.txt")
    assert done.returncode == 0, done.stderr
    pins = str(ROOT / "constraints-gpu-cu130.txt")
    assert lines[0].startswith("-m venv ")
    assert lines[5] == "-m pip uninstall --yes transformer-engine-torch "  # or one for an earlier torch would be kept
    upgrade, tools, torch, project, engine = map(options, [*lines[1:5], lines[6]])
    assert upgrade[:1] == ["--upgrade"] and upgrade[1].startswith("pip==")
    assert all(words[words.index("--constraint") + 1] == pins for words in (tools, torch, project, engine))
    assert torch[-3:] == ["torch", "torchvision", "torchaudio"] and project[-1] == f"{ROOT}[dev,vllm]"
    assert "--no-build-isolation" in engine and engine[-1] == f"{ROOT}[gpu]"
    compiled = lines[6]  # the extension is compiled against the torch that is here, with its headers, and never fetched
    assert "NVTE_PYTORCH_FORCE_BUILD=TRUE" in compiled and "/site/nvidia/cudnn/include" in compiled
    assert "PIP_CONSTRAINT" not in compiled and "MAX_JOBS=4" in compiled
    assert lines[7] == "-m pip check " and len(lines) == 8


def test_cuda_12_9_takes_the_builds_that_the_index_does_not_have(build, tmp_path):
    done, lines = build(FAKE_NVCC="12.9", FAKE_TORCH="12.9")
    assert done.returncode == 0, done.stderr
    assert shlex.split(lines[4])[2:] == [
        "pip", "install", "--python", f"{tmp_path}/an environment/bin/python", "--torch-backend", "cu129", "--constraint",
        str(ROOT / "constraints-gpu-cu129.txt"), "torch", "torchvision", "torchaudio",
    ]  # fmt: skip
    assert options(lines[5])[-1].endswith("vllm-0.32.0+cu129-cp38-abi3-manylinux_2_28_x86_64.whl")
    done, lines = build(FAKE_NVCC="12.6", FAKE_TORCH="12.9", TORCH_INDEX="file:///mirror", VLLM_WHEEL="/wheels/vllm.whl")
    assert done.returncode == 0, done.stderr
    assert "torch==2.13.0+cu129" in options(lines[2]) and "file:///mirror" in options(lines[2])
    assert options(lines[3])[-1] == "/wheels/vllm.whl"


def test_apex_is_compiled_by_its_own_switches_and_vllm_can_be_left_out(build, tmp_path):
    (tmp_path / "apex" / "csrc").mkdir(parents=True)
    (tmp_path / "apex" / "csrc" / "amp_C_frontend.cpp").touch()
    done, lines = build(WITH_APEX="1", APEX_SOURCE=str(tmp_path / "apex"), WITH_VLLM="0", WITHOUT_PROJECT="1")
    assert done.returncode == 0, done.stderr
    assert options(lines[4])[-1] == f"{ROOT}[dev]"
    assert options(lines[7]) == ["--verbose", "--no-build-isolation", "--no-cache-dir", str(tmp_path / "apex")]
    assert "APEX_CPP_EXT=1" in lines[7] and "APEX_CUDA_EXT=1" in lines[7] and "TORCH_CUDA_ARCH_LIST=8.0" in lines[7]
    assert lines[8] == "-m pip uninstall --yes vold-nemo "


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"without": ("nvcc",)}, "module load cuda"),
        ({"FAKE_NVCC": "12.9", "CUDA": "13.0"}, "nvcc is of CUDA 12.9, the environment of 13.0"),
        ({"FAKE_NVCC": "11.8"}, "there are environments for 13.0 and 12.9"),
        ({"CUDA": "12.6"}, "CUDA = 12.6"),
        ({"FAKE_PYTHON": "3.10"}, "python3 is Python 3.10"),
        ({"FAKE_LACKS": "1"}, "python3.12-venv and python3.12-dev"),
        ({"PYTHON": "python9"}, "no python9"),
        ({"FAKE_FREE": "3000000"}, "3 GB free in"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler no-such-compiler"),
        ({"FAKE_GLIBC": "2.28"}, "glibc 2.31 or newer"),
        ({"FAKE_MACHINE": "aarch64"}, "pinned for Linux on x86_64"),
        ({"WITH_APEX": "1"}, "is no checkout of NVIDIA's apex"),
        ({"WITH_APEX": "1", "FAKE_NVCC": "13.1"}, "apex wants the same"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_before_anything_is_made(build, tmp_path, wrong, told):
    done, lines = build(**wrong)
    assert done.returncode == 2 and told in done.stderr and "mend:" in done.stderr
    assert lines == [] and not (tmp_path / "an environment").exists()


def test_it_records_which_torch_was_compiled_for(tmp_path, monkeypatch):
    """The lines of the script that do it, in this environment."""
    (code,) = re.findall(r"<<'PY'\n(import importlib\.metadata.*?)\nPY\n", (ROOT / "slurm/build_gpu.sh").read_text(), re.DOTALL)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    exec(code, {})
    assert json.loads((tmp_path / installed.COMPILED).read_text())["torch"] == installed.version("torch")
    assert installed.compiled_for_another_torch() is None


def test_a_torch_for_another_cuda_ends_it(build):
    done, lines = build(FAKE_TORCH="12.6")
    assert done.returncode == 2 and "torch for CUDA 12.6 is in " in done.stderr and "not for 13.0" in done.stderr
    assert len(lines) == 4


def test_without_a_folder_it_explains_itself():
    done = subprocess.run(["bash", str(ROOT / "slurm/build_gpu.sh")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "FOLDER_OF_THE_ENVIRONMENT" in done.stderr and "VLLM_WHEEL" in done.stderr
    assert "set -euo" not in done.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "vold.def"])
def test_a_container_is_built_by_the_same_script_from_files_that_are_there(name):
    text = (ROOT / "slurm" / name).read_text()
    assert "WITHOUT_PROJECT=1 bash /opt/vold/build_gpu.sh /opt/venv /opt/vold" in text
    named = [word for word in text.split() if word.startswith("constraints") or word.endswith((".toml", "__init__.py"))]
    assert {Path(word).name for word in named} >= {file.name for file in ROOT.glob("constraints-gpu*.txt")}
    assert all((ROOT / word).is_file() for word in named if not os.path.isabs(word))
    assert "13.0.2-cudnn-devel-ubuntu24.04" in text and "12.9.1-cudnn-devel-ubuntu24.04" in text


def test_a_rank_in_a_container_finds_the_project_where_the_job_has_it(tmp_path):
    """Containers hold no vold_nemo.  In srun's place is a script that imports it, by an interpreter that has none either."""
    (tmp_path / "srun").write_text(
        '#!/bin/sh\nfor one; do case "${one}" in --output=*) logs="${one#--output=}"; logs="${logs%/*}";; esac; done\n'
        f'cd / && {sys.executable} -S -c "import vold_nemo; print(vold_nemo.__file__)" >"${{SAID}}" 2>&1\n'
        'echo "1 0 0 here" >"${logs}/rank_0.exit"\n'
    )
    (tmp_path / "srun").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "slurm/stage.sbatch"), "evaluate"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SAID": str(tmp_path / "said"), "SLURM_JOB_ID": "1", "VOLD_ROOT": str(ROOT),
             "SLURM_JOB_NODELIST": "n1", "SLURM_SUBMIT_DIR": str(tmp_path), "VOLD_PYTHON": "python"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "said").read_text().strip() == str(ROOT / "vold_nemo" / "__init__.py")
