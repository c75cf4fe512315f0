"""The packages of this environment against the versions that go with its torch: findings of recipes/doctor.py.

A CPU build of torch goes with constraints.txt (constraints-py312.txt), one for CUDA with constraints-gpu-*.txt.  Compiled
packages are tried as well: in a process of their own, since what was compiled for another torch may take the process with it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from vold_nemo.config import installed, places
from vold_nemo.megatron.diagnosis import BAD, GOOD, NOTE, Finding

# Of these another version changes what runs, or whether it does.
MATTER = ("torch", "megatron-core", "nemo-toolkit", "transformers", "vllm", "transformer-engine", "triton", "numpy",
          "hydra-core", "omegaconf", "datasets", "safetensors", "tokenizers", "lightning", "sympy")  # fmt: skip
# Package -> the module whose import loads what was compiled; vLLM's names of them change (_C, _C_stable_libtorch).
COMPILED = {"transformer-engine": "transformer_engine.pytorch", "flash-attn": "flash_attn", "apex": "amp_C"}
SECONDS = 120
TOPIC = "versions"


def pins(file: Path) -> dict[str, str]:
    """Name -> version of a list of versions, on this Python, with the lists that it names."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    for line in file.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-c "):
            found |= pins(file.parent / line[3:].strip())
        elif line:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate():
                found[wanted.name] = str(wanted.specifier).removeprefix("==")
    return found


def against_pins(file: Path | None = None) -> list[Finding]:
    """What is here in another version than ``file`` has (None: the list that goes with this torch)."""
    cuda = installed.torch_cuda()
    file = places.constraints(cuda) if file is None else file
    if not file.is_file():
        what = f"no list of versions for Python {sys.version_info[0]}.{sys.version_info[1]} and a torch for " \
               f"{'the CPU' if cuda is None else f'CUDA {cuda[0]}.{cuda[1]}'}"  # fmt: skip
        return [Finding(NOTE, TOPIC, what, "nothing was tested with it: CUDA 13.0 and 12.9 have one (slurm/build_gpu.sh)")]
    tested = pins(file)
    here = {name: version for name in tested if (version := installed.version(name)) is not None}
    differing = {name: version for name, version in here.items() if not _same(version, tested[name])}
    found = [_differs(name, differing[name], tested[name], file.name) for name in MATTER if name in differing]
    others = sorted(set(differing) - set(MATTER))
    if others:
        listed = ", ".join(f"{name} {differing[name]} ({tested[name]})" for name in others)
        found.append(Finding(NOTE, TOPIC, f"{len(others)} others differ from {file.name}: {listed}"))
    if not found:
        found.append(Finding(GOOD, TOPIC, f"{len(here)} packages as in {file.name}"))
    return found


def _same(here: str, tested: str) -> bool:
    """A build's local part, +cu129 or +cpu, does not count."""
    return here == tested or here.partition("+")[0] == tested


def _differs(name: str, here: str, tested: str, file: str) -> Finding:
    mend = f'pip install -c {file} "{name}=={tested}"'
    if name == "megatron-core":
        return Finding(BAD, name, f"{here}; tested: {tested}", f"its hooks are bound to a version: {mend}")
    if name == "torch" and not _series(here, tested):
        return Finding(BAD, name, f"{here}; tested: {tested}", "compiled packages are for one torch: slurm/build_gpu.sh")
    return Finding(NOTE, name, f"{here}; tested: {tested}", mend)


def _series(here: str, tested: str) -> bool:
    return here.split(".")[:2] == tested.split(".")[:2]


def unmet() -> list[Finding]:
    """What vLLM and this project ask of other packages in vain; pip says it once, while it installs."""
    wanted = installed.unmet("vllm")
    hard = [line for line in wanted if re.match(r"(torch|transformers)[^a-z]", line)]
    found = []
    if hard:
        mend = "its kernels and models are for those: install under constraints-gpu-*.txt (slurm/build_gpu.sh)"
        found.append(Finding(BAD, "vllm", f"{installed.version('vllm')} wants {', '.join(hard)}", mend))
    if len(wanted) > len(hard):
        rest = ", ".join(line for line in wanted if line not in hard)
        found.append(Finding(NOTE, "vllm", f"wants {rest}"))
    own = installed.unmet("vold-nemo")
    if own:
        how = "make install" if installed.torch_cuda() is None else "slurm/build_gpu.sh"
        found.append(Finding(BAD, "vold-nemo", f"wants {', '.join(own)}", f"install under the list of versions: {how}"))
    return found


def engine() -> list[Finding]:
    """Transformer Engine's packages, of one version and for torch's CUDA."""
    trouble = installed.engine_trouble()
    if trouble is not None:
        return [Finding(BAD, "transformer-engine", trouble[0], trouble[1])]
    stale = installed.compiled_for_another_torch()
    if stale is not None:
        return [Finding(BAD, "transformer-engine", stale, "run slurm/build_gpu.sh on this environment again")]
    return []


def compiled(seconds: float = SECONDS, modules: dict[str, str] | None = None) -> list[Finding]:
    """Import what was compiled against torch, each in a process that may take ``seconds``; nothing of the kind, no line."""
    wanted = {**COMPILED, **_vllm_kernels()} if modules is None else modules
    there = {name: module for name, module in wanted.items() if importlib.util.find_spec(module.split(".")[0]) is not None}
    return [attempt_import(name, module, seconds) for name, module in there.items()]


def _vllm_kernels() -> dict[str, str]:
    names = [str(file) for file in (importlib.metadata.files("vllm") or [])] if installed.version("vllm") else []
    found = sorted(match[1] for name in names if (match := re.fullmatch(r"vllm/(_C\w*)\.[\w.-]*so", name)))
    return {"vllm": f"vllm.{found[0]}"} if found else {}


def attempt_import(name: str, module: str, seconds: float) -> Finding:
    topic = f"import {name}"
    command = [sys.executable, "-c", f"import torch, {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Finding(BAD, topic, f"not done after {seconds:,.0f} s", "a slow file system, or it waits for a GPU")
    if done.returncode == 0:
        return Finding(GOOD, topic, f"{module} loads")
    said = done.stderr.strip().splitlines()
    what = said[-1] if said else f"ended by signal {-done.returncode}"
    if done.returncode < 0:
        what = f"ended by signal {-done.returncode}{f': {said[-1]}' if said else ''}"
    return Finding(BAD, topic, what, _mend(what))


def _mend(what: str) -> str:
    if "undefined symbol" in what or "signal" in what:
        return "compiled for another torch: slurm/build_gpu.sh compiles it for the one that is here"
    if "libcuda.so" in what:
        return "no driver here: try again on a GPU node"
    return "slurm/build_gpu.sh makes an environment in which it loads"


def versions() -> dict[str, str]:
    """Every distribution that is installed, and its version."""
    return {name: one.version for one in importlib.metadata.distributions() if (name := one.metadata["Name"])}
