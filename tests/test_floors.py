"""Imports run downwards only, and the heavy libraries stay out of what a plan or the objective needs (docs/architecture.md)."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vold_nemo"
FLOOR = {"config": 0, "objective": 1, "step": 1, "miniature": 2, "rewards": 2, "data": 2, "megatron": 2, "checkpoint": 2,
         "rollout": 3, "evaluation": 3, "planning": 3, "models": 4, "pages": 5, "rehearsal": 5, "command": 6}  # fmt: skip


def imported(file: Path, *, whole: bool) -> set[str]:
    """Dotted names that ``file`` imports: anywhere in it, or only at its top level."""
    tree, found = ast.parse(file.read_text()), set()
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def folders(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("vold_nemo.")}


@pytest.mark.parametrize("folder", FLOOR)
def test_no_folder_imports_from_a_floor_above(folder):
    for file in (ROOT / folder).rglob("*.py"):
        above = {other for other in folders(imported(file, whole=True)) if FLOOR.get(other, -1) > FLOOR[folder]}
        assert not above, f"{file} imports {above}"


def test_every_module_has_a_room():
    assert [file.name for file in ROOT.glob("*.py")] == ["__init__.py"]
    assert {folder.name for folder in ROOT.iterdir() if any(folder.glob("*.py"))} == set(FLOOR)


def test_folders_of_one_floor_do_not_import_each_other_in_a_circle():
    seen: dict[str, set[str]] = {
        folder: set().union(*(folders(imported(file, whole=True)) for file in (ROOT / folder).rglob("*.py"))) & set(FLOOR)
        for folder in FLOOR
    }
    reached = {folder: seen[folder] - {folder} for folder in FLOOR}
    for _ in FLOOR:
        reached = {folder: found | set().union(*(reached[other] for other in found)) for folder, found in reached.items()}
    assert not [folder for folder, found in reached.items() if folder in found]


def test_the_configuration_needs_omegaconf_yaml_and_the_standard_library_alone():
    for file in (ROOT / "config").rglob("*.py"):
        found = imported(file, whole=False)
        known = {*sys.stdlib_module_names, "omegaconf", "yaml", "vold_nemo"}
        assert {name.split(".")[0] for name in found if name} <= known, file
        assert folders(imported(file, whole=True)) <= {"config"}, file


@pytest.mark.parametrize(("folder", "known"), [("objective", {"objective"}), ("step", {"objective", "step"})])
def test_the_objective_and_the_step_know_torch_and_themselves_alone(folder, known):
    for file in (ROOT / folder).glob("*.py"):
        names = imported(file, whole=True)
        assert folders(names) <= known, file
        others = {name.split(".")[0] for name in names} - {"vold_nemo", "torch", "triton"}
        assert others <= sys.stdlib_module_names, file


def test_the_rollout_engines_are_handed_tensors_and_know_no_megatron():
    for file in (ROOT / "rollout").glob("*.py"):
        assert "megatron" not in folders(imported(file, whole=True)), file


@pytest.mark.parametrize("folder", FLOOR)
def test_heavy_libraries_are_imported_where_they_are_used(folder):
    heavy = {"nemo", "lightning", "vllm", "transformer_engine", "transformers", "scipy", "jinja2"}
    allowed = {  # classes derived from theirs; these files are themselves imported late
        "models/student.py": {"nemo"}, "checkpoint/nemo_archive.py": {"nemo"}, "rollout/decoding.py": {"transformers"},
    }  # fmt: skip
    for file in (ROOT / folder).rglob("*.py"):
        found = {name.split(".")[0] for name in imported(file, whole=False) if name} & heavy
        assert found <= allowed.get(str(file.relative_to(ROOT)), set()), f"{file} imports {found} at once"


def test_one_file_of_the_trainers_floors_asks_torch_what_device_is_here():
    """Besides it, what stands in for ``torch.cuda`` and what inspects the machine; engines and judges may not import it, and a
    rehearsal plays ``torch.cuda`` itself."""
    allowed = {"megatron/device.py", "megatron/cpu.py", "megatron/diagnosis.py"}
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT)
        if str(name) in allowed or name.parts[0] in ("rollout", "evaluation", "rehearsal"):
            continue
        tree = ast.parse(file.read_text())
        asked = [
            node.lineno for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.cuda", "torch.version.cuda")
        ]  # fmt: skip
        assert not asked and "torch.cuda" not in imported(file, whole=True), f"{name} asks torch.cuda in lines {asked}"
