"""A wheel that was built and installed elsewhere composes, plans and finds the launchers without a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from vold_nemo.config import places

ROOT = Path(__file__).resolve().parents[2]


def call(*words: str | Path, folder: Path) -> subprocess.CompletedProcess:
    foreign = ("SLURM_", "RANK", "WORLD", "PYTHONPATH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return subprocess.run(list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The interpreter of a new environment that has our wheel, and this environment's libraries."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind
    for name in ("vold_nemo", "conf", "slurm", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", *(file.name for file in ROOT.glob("constraints*.txt"))):
        shutil.copy(ROOT / name, source)
    pip, alone = (sys.executable, "-m", "pip"), ("--no-deps", "--no-index")
    built = call(*pip, "wheel", *alone, "--no-build-isolation", "-w", folder, source, folder=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    assert call(sys.executable, "-m", "venv", "--without-pip", folder / "env", folder=folder).returncode == 0
    python = folder / "env" / "bin" / "python"
    done = call(*pip, "--python", python, "install", *alone, wheel, folder=folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    site = next((folder / "env" / "lib").glob("python3.*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files, ours among them, stay out
    return python


def test_in_a_checkout_the_three_folders_are_its_own():
    assert [places.conf(), places.slurm(), places.recipes()] == [ROOT / name for name in ("conf", "slurm", "recipes")]


def test_a_wheel_has_every_file_of_the_three_folders_and_the_lists_of_versions(installed):
    code = "from vold_nemo.config import places; print(places.root())"
    root = Path(call(installed, "-c", code, folder=installed.parent).stdout.strip())
    assert root.is_relative_to(installed.parents[1])
    for name in ("conf", "slurm", "recipes"):
        files = {file.relative_to(ROOT) for file in (ROOT / name).rglob("*") if file.is_file() and file.suffix != ".pyc"}
        assert files and all((root / file).read_bytes() == (ROOT / file).read_bytes() for file in files)
    lists = {file.name for file in ROOT.glob("constraints*.txt")}
    assert len(lists) >= 4 and {file.name for file in root.iterdir() if file.is_file()} == lists


def test_an_installed_wheel_plans_ones_own_experiment_from_ones_own_folder(installed, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [paper_3b, _self_]\nname: mine\nvold: {steps: 7}\n"
    )
    code = "from vold_nemo.config import places; print(places.recipes() / 'plan.py')"
    plan = call(installed, "-c", code, folder=tmp_path).stdout.strip()
    done = call(installed, plan, "experiment=mine", "sbatch=vold.sbatch", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "7 steps of 256 prompts" in done.stdout and (tmp_path / "outputs/mine/plan/plan.html").is_file()
    script = (tmp_path / "vold.sbatch").read_text()
    (root,) = (line.partition("=")[2] for line in script.splitlines() if line.startswith("export VOLD_ROOT="))
    assert (Path(root) / "slurm/stage.sbatch").is_file() and (Path(root) / "recipes/vold.py").is_file()
    assert str(ROOT) not in script
