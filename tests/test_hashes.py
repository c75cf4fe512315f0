"""The lists of hashes are of the pinned versions, all of them and no others; torch stands outside."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FILES = {"3.11": "constraints.txt", "3.12": "constraints-py312.txt"}


def hashed(name: str, python: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> (version, SHA-256 of its files) that pip would take on one Python."""
    found = {}
    lines = (line for line in (ROOT / ".ci" / name).read_text().splitlines() if not line.startswith("#"))
    for entry in re.split(r"(?<!\\)\n", "\n".join(lines).strip()):
        first, *hashes = (part.strip() for part in entry.split("\\\n"))
        wanted = Requirement(first)
        if wanted.marker is None or wanted.marker.evaluate({"python_version": python}):
            assert wanted.name not in found and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), entry
            found[wanted.name] = (str(wanted.specifier).removeprefix("=="), hashes)
    return found


def pins(file: Path) -> dict[str, str]:
    return dict(line.split("==") for line in file.read_text().splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("python", FILES)
def test_every_pinned_version_but_torch_has_its_hashes(python):
    pinned, found = pins(ROOT / FILES[python]), hashed("hashes.txt", python)
    assert {name: version for name, (version, _) in found.items()} == {k: v for k, v in pinned.items() if k != "torch"}
    assert all(hashes for _, hashes in found.values()), "python .ci/pin_hashes.py"


@pytest.mark.parametrize("python", FILES)
@pytest.mark.parametrize("name", ["tools", "sbom"])
def test_what_installs_and_what_lists_the_parts_is_pinned_with_hashes(name, python):
    asked, found = pins(ROOT / f".ci/{name}.txt"), hashed(f"{name}-hashes.txt", python)
    assert asked.items() <= {key: version for key, (version, _) in found.items()}.items()
    assert all(hashes for _, hashes in found.values())


def test_continuous_integration_installs_by_hash_and_nothing_installs_an_unpinned_pip():
    assert "make install HASHES=1" in (ROOT / ".ci/run").read_text()
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "--upgrade pip" in line]
    assert lines and all("--constraint .ci/tools.txt" in line for line in lines)
    assert f"--upgrade pip=={pins(ROOT / '.ci/tools.txt')['pip']} " in (ROOT / "slurm/build_gpu.sh").read_text()
