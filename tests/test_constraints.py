"""The pins of both Pythons: the same but for what megatron-core asks for, and those that pyproject.toml and the tests name."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from vold_nemo.megatron.versions import TESTED

ROOT = Path(__file__).parents[1]
FILES = {"3.11": "constraints.txt", "3.12": "constraints-py312.txt"}


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert list(found) == sorted(found) and len(found) > 100
    return found


def test_the_pins_of_both_pythons_differ_in_megatron_core_and_triton_alone():
    old, new = map(pins, FILES.values())
    assert {name for name in old | new if old.get(name) != new.get(name)} == {"megatron-core", "triton"}
    assert (old["megatron-core"], new["megatron-core"]) == TESTED and "triton" not in old


def test_each_python_asks_for_the_version_that_it_is_pinned_to():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    others = (ROOT / "tests" / "vllm" / "requirements.txt").read_text().splitlines()
    for lines in (project, [line for line in others if not line.startswith("#")]):
        asked = [one for one in map(Requirement, lines) if one.name == "megatron-core"]
        for python, file in FILES.items():
            (one,) = (one for one in asked if one.marker is None or one.marker.evaluate({"python_version": python}))
            assert str(one.specifier) == f"=={pins(file)['megatron-core']}"
