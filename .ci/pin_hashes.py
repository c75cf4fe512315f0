"""Make .ci/*-hashes.txt anew: SHA-256 of every file that pip may pick for the pinned versions.

    python .ci/pin_hashes.py        after a change of constraints.txt, constraints-py312.txt, .ci/tools.txt or .ci/sbom.txt

Needs uv (``pip install uv``) and a network; only metadata is fetched, a minute or so.  A version has one file for each
interpreter and platform, and its source; taken are those for Linux, on x86_64 and aarch64, and Python 3.11 and 3.12.  torch and
what only its builds bring (NVIDIA's libraries) stand outside: a CPU build and a GPU build are other files under one version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PINS = {"3.11": "constraints.txt", "3.12": "constraints-py312.txt"}
MACHINES = ("x86_64-manylinux_2_40", "aarch64-manylinux_2_40")  # and all that an older glibc may pick
OUTSIDE = {"torch"}
HEAD = """\
# SHA-256 of every file of these versions that pip may pick on Linux.  {use}
# Made by `python .ci/pin_hashes.py`, not edited by hand.
"""
Found = dict[tuple[str, str], set[str]]  # (name, version): SHA-256 of its files


def pins(file: Path) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def resolve(wanted: list[str | Path], constraints: Path, python: str) -> Found:
    """All that ``wanted`` takes under ``constraints``, on any of the machines."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        sys.exit("error: no uv: pip install uv")
    found: Found = {}
    for machine in MACHINES:
        with tempfile.TemporaryDirectory() as folder:
            lock = Path(folder, "pylock.toml")
            command = [uv, "--no-python-downloads", "pip", "compile", *wanted, "--constraints", constraints, "--quiet",
                       "--format", "pylock.toml", "--python-version", python, "--python-platform", machine,
                       "--output-file", lock]  # fmt: skip
            subprocess.run(list(map(str, command)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            packages = tomllib.loads(lock.read_text())["packages"]
        for one in packages:
            files = [*one.get("wheels", []), *([one["sdist"]] if "sdist" in one else [])]
            found.setdefault((one["name"], one["version"]), set()).update(file["hashes"]["sha256"] for file in files)
    return found


def lines_of(found: dict[str, Found]) -> str:
    """One requirement with its hashes for each version, with a marker where only one Python takes it."""
    older, newer = PINS
    text = ""
    for name, version in sorted(set().union(*found.values())):
        have = [python for python in PINS if (name, version) in found[python]]
        marker = "" if len(have) == 2 else f" ; python_version {'<' if have == [older] else '>='} '{newer}'"
        hashes = sorted(set().union(*(found[python][name, version] for python in have)))
        text += " \\\n    ".join([f"{name}=={version}{marker}", *(f"--hash=sha256:{one}" for one in hashes)]) + "\n"
    return text


def main() -> None:
    found = {}
    for python, file in PINS.items():
        taken, pinned = resolve(["pyproject.toml", "--extra", "dev"], ROOT / file, python), pins(ROOT / file)
        if lost := sorted(key for key in pinned.items() if key not in taken):
            sys.exit(f"error: pinned in {file}, and not taken: {lost}")
        found[python] = {(name, version): taken[name, version] for name, version in pinned.items() if name not in OUTSIDE}
    (HERE / "hashes.txt").write_text(HEAD.format(use="make install HASHES=1") + lines_of(found))
    for name, use in {"tools": "What installs the others.", "sbom": "What make sbom runs."}.items():
        file = HERE / f"{name}.txt"
        found = {python: resolve([file], ROOT / pins_of, python) for python, pins_of in PINS.items()}
        (HERE / f"{name}-hashes.txt").write_text(HEAD.format(use=use) + lines_of(found))


if __name__ == "__main__":
    main()
