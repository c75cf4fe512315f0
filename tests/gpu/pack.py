"""Everything that ``make gpu`` needs on a machine with a GPU, Python, torch and nvcc and no network, as one small folder.

    python -m tests.gpu.pack FOLDER [--arch 90] [--python 3.12] [--there LIST] [--extension FOLDER] [--limit 60]

Run where there is a network; then take the working tree and FOLDER to the machine:

    bash FOLDER/first.sh OUT    # once: compiles Transformer Engine's extension for torch; its wheel, in pieces, in OUT
    bash FOLDER/run.sh OUT      # with `--extension OUT` packed in: the items of tests/gpu, in eight minutes

``--there`` is a list of what the machine has (the output of ``pip list --format=freeze``): of :data:`COMMON` that is left out.
The whole, with the files that git knows, may take ``--limit`` MiB.  Of Transformer Engine's core library only the kernels of
``--arch`` are kept: a private, stripped copy, not to be passed on.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.gpu import fatbin
from tests.gpu.facts import ROOT, pins

ENGINE, CORE, EXTENSION = "transformer-engine", "transformer-engine-cu13", "transformer-engine-torch"
ENGINE_VERSION = "2.20.2"  # whose layers were rehearsed (vold_nemo/rehearsal/engine/importing.py)
# What the training stages import beside torch, and in whose versions they were tested: always taken along.
WHEELS = (
    "megatron-core", "nemo-toolkit", "lightning", "pytorch-lightning", "lightning-utilities", "torchmetrics", "hydra-core",
    "omegaconf", "pydantic", "pydantic-core", "typing-inspection", "annotated-types", "nv-one-logger-core", "strenum",
    "overrides", "toml", "nv-one-logger-training-telemetry", "nv-one-logger-pytorch-lightning-integration",
)  # fmt: skip
# What a machine for deep learning usually has: left out where --there names it.
COMMON = (
    "einops", "transformers", "tokenizers", "safetensors", "huggingface-hub", "httpx2", "httpcore2", "truststore", "h11",
    "anyio", "sniffio", "idna", "pyyaml", "packaging", "tqdm", "rich", "regex", "xxhash", "psutil", "jinja2", "pillow",
    "scipy", "wrapt", "tensorboard", "fsspec", "sympy", "mpmath", "cloudpickle", "ml-dtypes", "sentencepiece",
)  # fmt: skip
SOURCES = ("antlr4-python3-runtime",)  # published without a wheel; pure Python
TAGS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
PIECE = 15 << 20  # bytes of one piece of the extension's wheel
SCRIPTS = Path(__file__).with_name("offline")


def main(argv: Sequence[str]) -> None:
    asked = arguments(argv)
    folder = Path(asked.folder)
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: name a new folder")
    for name in ("wheels", "engine", "extension"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    there = names_in(Path(asked.there).read_text()) if asked.there else set()
    pinned = pins()
    wanted = [f"{name}=={pinned[name]}" for name in (*WHEELS, *COMMON) if name in WHEELS or name not in there]
    download([*wanted, f"{ENGINE}=={ENGINE_VERSION}"], folder / "wheels", asked.python)
    for name in SOURCES:
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheels", f"{name}=={pinned[name]}")
    with tempfile.TemporaryDirectory() as aside:
        download([f"{CORE}=={ENGINE_VERSION}"], Path(aside), asked.python)
        (wheel,) = Path(aside).glob("*.whl")
        shrink(wheel, folder / "engine", asked.arch)
    source_of_extension(folder / "extension")
    if asked.extension:
        pieces = sorted(Path(asked.extension).glob("*.whl.*"))
        if not pieces:
            raise SystemExit(f"--extension {asked.extension}: no pieces of a wheel (*.whl.00, ...), which first.sh leaves")
        for piece in pieces:
            shutil.copy(piece, folder / "extension")
    for script in SCRIPTS.glob("*.sh"):
        shutil.copy(script, folder)
    size = measured(folder, tree_bytes(ROOT), asked.limit)
    print(f"{folder}: {size / 2**20:.1f} MiB with the working tree, of {asked.limit}")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.pack", description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--arch", type=int, default=90, help="whose kernels are kept: 80 (A100), 90 (H100, H200), 100 (B200)")
    parser.add_argument("--python", default="3.12", help="version of the machine's")
    parser.add_argument("--there", help="file: what is installed there, a package a line")
    parser.add_argument("--extension", help="folder with the pieces that first.sh left")
    parser.add_argument("--limit", type=float, default=60, help="MiB of the folder and of the files that git knows")
    return parser.parse_args(argv)


def names_in(text: str) -> set[str]:
    """Names of packages, one a line, with or without ``==version``."""
    found = (re.match(r"[A-Za-z0-9_.-]+", line.strip()) for line in text.splitlines())
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in found if name}


def pip(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip {words[0]} failed: {done.stderr.strip()[-1200:]}")


def download(requirements: Iterable[str], folder: Path, python: str) -> None:
    """Wheels for ``python`` on 64-bit Linux, and nothing that they ask for."""
    tags = [word for tag in TAGS for word in ("--platform", tag)]
    pip("download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *tags, "--dest", folder, *requirements)  # fmt: skip


def shrink(wheel: Path, folder: Path, arch: int) -> None:
    """The core library of ``wheel`` with the kernels of ``arch`` alone, stripped and compressed, and the wheel's metadata.

    :raises SystemExit: a wheel without such a library or without such kernels.
    """
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as aside:
        libraries = [name for name in archive.namelist() if name.endswith("libtransformer_engine.so")]
        if len(libraries) != 1:
            raise SystemExit(f"{wheel.name}: {len(libraries)} core libraries, wanted: 1")
        data = bytearray(archive.read(libraries[0]))
        try:
            fatbin.keep(data, arch)
        except ValueError as error:
            raise SystemExit(f"{wheel.name}: {error} (--arch)") from error
        file = Path(aside) / "libtransformer_engine.so"
        file.write_bytes(data)
        if strip := shutil.which("strip"):
            subprocess.run([strip, "--strip-unneeded", str(file)], check=True)
        (folder / "libtransformer_engine.so.xz").write_bytes(lzma.compress(file.read_bytes(), preset=6))
        (folder / "where").write_text(libraries[0] + "\n")  # in the folder of installed packages
        for name in archive.namelist():
            if ".dist-info/" in name:
                archive.extract(name, folder)


def source_of_extension(folder: Path) -> None:
    """The source of Transformer Engine's torch extension.

    To say what a source archive is, pip runs its ``setup.py``, which asks torch for the CUDA that it was built with and finds a
    CPU build here: an environment that is thrown away again has three files in torch's place.
    """
    with tempfile.TemporaryDirectory() as aside:
        subprocess.run([sys.executable, "-m", "venv", aside], check=True)
        site = next(Path(aside).glob("lib/python*/site-packages"))
        torch = {
            "torch/__init__.py": "from torch import version\n__version__ = '2.11.0'\n"
                                 "class _C:\n    _GLIBCXX_USE_CXX11_ABI = True\n",
            "torch/version.py": "cuda = '13.0'\n",
            "torch/utils/__init__.py": "",
            "torch/utils/cpp_extension.py": "from setuptools import Extension\n"
                                            "from setuptools.command.build_ext import build_ext as BuildExtension\n"
                                            "def CppExtension(name, sources, *a, **k):\n    return Extension(name, sources)\n"
                                            "CUDAExtension = CppExtension\n",
        }  # fmt: skip
        for name, text in torch.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        python = Path(aside) / "bin/python"
        for command in (
            ["install", "--quiet", "setuptools", "wheel", "packaging", "ninja"],
            ["download", "--quiet", "--no-deps", "--no-binary=:all:", "--no-build-isolation", "--dest", str(folder),
             f"{EXTENSION}=={ENGINE_VERSION}"],
        ):  # fmt: skip
            done = subprocess.run(
                [str(python), "-m", "pip", *command], capture_output=True, text=True,
                env={"PATH": "/usr/bin:/bin", "NVTE_WITH_NCCL_EP": "0", "NVTE_FRAMEWORK": "pytorch", "HOME": aside},
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"{EXTENSION}: {done.stderr.strip()[-1200:]}")


def tree_bytes(root: Path) -> int:
    """Of the files that git knows or would add."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return 0  # no repository: whoever copies the tree knows what it takes
    return sum((root / name).lstat().st_size for name in set(filter(None, done.stdout.split("\0"))) if (root / name).exists())


def measured(folder: Path, beside: int, limit: float) -> int:
    """Bytes of ``folder`` and ``beside``; writes what the folder holds into its ``pack.json``.

    :raises SystemExit: above ``limit`` MiB, naming the largest files.
    """
    files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    size = sum(files.values()) + beside
    if size > limit * 2**20:
        largest = sorted(files.items(), key=lambda item: -item[1])[:6]
        said = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in largest)
        raise SystemExit(
            f"{folder}: {size / 2**20:.1f} MiB with the {beside / 2**20:.1f} of the working tree, and {limit:g} may travel "
            f"(--limit); the largest: {said}; --there leaves out what the machine has"
        )
    (folder / "pack.json").write_text(json.dumps({"engine": ENGINE_VERSION, "files": files}, indent=1) + "\n")
    return size


if __name__ == "__main__":
    main(sys.argv[1:])
