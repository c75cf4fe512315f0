"""Make constraints-gpu*.txt anew: what this project, vLLM and Transformer Engine can be installed with, all at once.

    python slurm/pin_gpu.py                resolve for both CUDA versions and both Pythons, write the three files
    python slurm/pin_gpu.py --check        resolve under the files as they are; leave with 1 if that fails

Needs uv (``pip install uv``) and a network; only metadata is fetched, some 20 s a resolution.  Where constraints.txt has a
version that fits, it is taken, so that a GPU environment differs from the tested one in as little as can be.

Two builds are not on the Python package index, and what they ask for is written down here, for uv to take as theirs:

- torch 2.13.0 for CUDA 12.9 (``2.13.0+cu129``) lies on PyTorch's own index.  The index's build is for CUDA 13.0.
- vLLM 0.32.0 for CUDA 12.9 (``0.32.0+cu129``) lies beside its release.  It differs by the extra of humming-kernels.

Transformer Engine's extension for torch exists as source alone, whose demands its setup.py makes from the torch it finds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12")
CUDAS = ("13.0", "12.9")
# The oldest glibc that every wheel runs on: llguidance, which vLLM asks for, has none for less.
PLATFORM = "x86_64-manylinux_2_31"
ENGINE = "2.20.2"
PARTS = "cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx"

TORCH_CU129 = (
    f"cuda-toolkit[{PARTS}]==12.9.1", "cuda-bindings>=12.9.4,<13", "nvidia-cudnn-cu12==9.20.0.48",
    "nvidia-cusparselt-cu12==0.8.1", "nvidia-nccl-cu12==2.29.7", "nvidia-nvshmem-cu12==3.4.5", "triton==3.7.1", "filelock",
    "typing-extensions>=4.10.0", "setuptools>=77.0.3", "sympy>=1.13.3", "networkx>=2.5.1", "jinja2", "fsspec>=0.8.5",
)  # fmt: skip
ENGINE_TORCH = (
    "torch>=2.1", "einops", "onnxscript", "onnx", "packaging", "pydantic", "nvdlfw-inspect", "nvidia-cudnn-frontend>=1.29.0",
)  # fmt: skip
# vLLM's kernels are compiled on the node when they are first used: by a compiler and headers of torch's own toolkit.
# flashinfer takes any cuda-python, but those before 12.9 bring a cuda.bindings of their own, over that of torch.
ONE_TOOLKIT = {"13.0": "cuda-toolkit[cccl,nvcc]\ncuda-python>=13\n", "12.9": "cuda-toolkit[cccl,nvcc]\ncuda-python>=12.9\n"}

HEAD = """\
# {what}
# Made by `python slurm/pin_gpu.py` from a resolution by uv, for Linux on x86_64 with glibc 2.31 or newer, Python 3.11 and 3.12;
# not edited by hand.  {more}
"""


def short(cuda: str) -> str:
    return "cu" + cuda.replace(".", "")


def file_of(cuda: str | None) -> Path:
    return ROOT / ("constraints-gpu.txt" if cuda is None else f"constraints-gpu-{short(cuda)}.txt")


def settings(cuda: str) -> str:
    """uv's configuration: the metadata that it cannot read."""
    told = {
        ("transformer-engine-torch", ENGINE): (*ENGINE_TORCH, f"transformer-engine-{short(cuda)[:4]}=={ENGINE}"),
        ("antlr4-python3-runtime", "4.9.3"): (),  # source alone, too, and without demands
    }
    if cuda == "12.9":
        told["torch", "2.13.0"] = TORCH_CU129
    return "".join(
        f'[[dependency-metadata]]\nname = "{name}"\nversion = "{version}"\nrequires-dist = {list(wants)}\n\n'
        for (name, version), wants in told.items()
    )


def resolve(cuda: str, python: str, preferred: dict[str, str], constraints: Path | None = None) -> dict[str, str]:
    """Name -> version of all that one environment takes.

    Raises:
        subprocess.CalledProcessError: there is no such environment; uv's reason is in its ``stderr``.
    """
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        sys.exit("error: no uv: pip install uv")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "uv.toml").write_text(settings(cuda))
        (here / "more.in").write_text(ONE_TOOLKIT[cuda])
        (here / "replaced.txt").write_text("humming-kernels[cu12]==0.1.17\n" if cuda == "12.9" else "")
        (here / "pins.txt").write_text("".join(f"{name}=={version}\n" for name, version in preferred.items()))
        command = [
            uv, "--config-file", here / "uv.toml", "--no-python-downloads", "pip", "compile", ROOT / "pyproject.toml",
            here / "more.in", "--overrides", here / "replaced.txt", "--output-file", here / "pins.txt",
            "--python-platform", PLATFORM, "--python-version", python, "--no-header", "--no-annotate", "--quiet",
        ]  # fmt: skip
        command += [word for extra in ("dev", "vllm", "gpu") for word in ("--extra", extra)]
        command += ["--constraints", constraints] if constraints else []
        subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        return pins(here / "pins.txt")


def pins(file: Path) -> dict[str, str]:
    """Name -> version of a list without markers."""
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==(\S+)$", file.read_text(), re.MULTILINE))


def marked(found: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Name -> its lines, from the pins of each Python; a marker where only one has it, or they differ."""
    older, newer = PYTHONS
    markers = {older: f" ; python_version < '{newer}'", newer: f" ; python_version >= '{newer}'"}
    lines: dict[str, list[str]] = {}
    for name in sorted(set().union(*found.values())):
        versions = {python: found[python][name] for python in PYTHONS if name in found[python]}
        same = len(versions) == len(PYTHONS) and len(set(versions.values())) == 1
        lines[name] = [
            f"{name}=={version}{'' if same else markers[python]}"
            for python, version in list(versions.items())[: 1 if same else None]
        ]
    return lines


def write(by_cuda: dict[str, dict[str, list[str]]]) -> None:
    """What both CUDA versions have in common, and a file for what each has of its own."""
    first, *others = by_cuda.values()
    shared = {name for name in first if all(other.get(name) == first[name] for other in others)}
    head = HEAD.format(
        what="The versions that install together on GPU nodes, whatever the CUDA.",
        more="Use constraints-gpu-cu130.txt or -cu129.txt, which read this file.",
    )
    file_of(None).write_text(head + "".join(f"{line}\n" for name in sorted(shared) for line in first[name]))
    for cuda, lines in by_cuda.items():
        builds = "the package index's own" if cuda == "13.0" else "PyTorch's 2.13.0+cu129, and vLLM's 0.32.0+cu129"
        head = HEAD.format(
            what=f"The versions that install together with CUDA {cuda}: pip install -c {file_of(cuda).name} -e .[dev,vllm]",
            more=f"Builds: {builds}.",
        )
        own = [line for name in sorted(set(lines) - shared) for line in lines[name]]
        file_of(cuda).write_text(head + f"-c {file_of(None).name}\n" + "".join(f"{line}\n" for line in own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="resolve under the files as they are, write nothing")
    check = parser.parse_args().check
    preferred, by_cuda = pins(ROOT / "constraints.txt"), {}
    for cuda in CUDAS:
        found = {}
        for python in PYTHONS:
            try:
                found[python] = resolve(cuda, python, {} if check else preferred, file_of(cuda) if check else None)
            except subprocess.CalledProcessError as error:
                sys.exit(f"error: CUDA {cuda}, Python {python}:\n{error.stderr}")
            preferred = {**preferred, **found[python]}
            print(f"CUDA {cuda}, Python {python}: {len(found[python])} packages", flush=True)
        by_cuda[cuda] = marked(found)
    if not check:
        write(by_cuda)


if __name__ == "__main__":
    main()
