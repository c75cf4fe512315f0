"""``shim.cpp`` as a shared library: compiled against this torch with the compiler at hand, once, and kept for the next time.

It comes before torch: torch looks its CUDA hooks up once, while it is imported.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from vold_nemo.config import ConfigError

SOURCE = Path(__file__).with_name("shim.cpp")


def load() -> None:
    """Make this process' torch accept device type CUDA.  For a process that does nothing else, and has not imported torch.

    Raises:
        ConfigError: there is no C++ compiler, it fails, or this torch was built with CUDA.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already: a rehearsal is a process of its own")
    folder, version = Path(importlib.util.find_spec("torch").origin).parent, importlib.metadata.version("torch")
    built_with = re.search(r"^cuda\b.*= *'(.+)'", (folder / "version.py").read_text(), re.MULTILINE)
    if built_with:
        mend = "rehearse in an environment with a CPU build of torch; on a machine with GPUs run the experiment itself"
        raise ConfigError("torch", f"{version} with CUDA {built_with[1]}", "a build without CUDA", mend)
    ctypes.CDLL(str(_compiled(folder, version)))


def _compiled(folder: Path, version: str) -> Path:
    code = SOURCE.read_bytes()
    name = hashlib.sha256(code + version.encode() + str(folder).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vold_nemo"
    library = cache / f"rehearsal_{name}.so"
    if library.is_file():
        return library
    asked = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [asked] if asked else ["c++", "g++", "clang++"])), None)
    mend = "install g++ (Debian: apt-get install g++), or name a compiler in CXX"
    if compiler is None:
        raise ConfigError("C++ compiler", asked, "one that builds C++20: a rehearsal compiles 60 lines on first use", mend)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        mend = "set XDG_CACHE_HOME to one"
        raise ConfigError("cache", f"{cache}: {error.strerror}", "a folder that can be written", mend) from error
    aside = library.with_suffix(f".{os.getpid()}")
    include, libraries = folder / "include", folder / "lib"
    done = subprocess.run(
        [
            compiler, "-shared", "-fPIC", "-O1", "-std=c++20", str(SOURCE), "-o", str(aside), f"-I{include}",
            f"-I{include / 'torch/csrc/api/include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu",
            "-lc10",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word"])[0]
        raise ConfigError("C++ compiler", f"{compiler}: {said}", "one that builds C++20 against torch's headers", mend)
    os.replace(aside, library)  # two rehearsals may be first at once
    return library
