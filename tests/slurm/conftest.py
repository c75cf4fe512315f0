"""A private two-node Slurm for the tests, and a handle on its jobs.  Skipped, with the reason, where it cannot run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL"}


def obstacle() -> str | None:
    """Why no private Slurm can run here; None if one can."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "a private Slurm needs root for munge and for its nodes' namespaces"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "this container may not make namespaces (CAP_SYS_ADMIN)"
    return None


class Slurm:
    """The cluster in ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "VOLD_", "RANK", "WORLD"))}
        path = os.pathsep.join([inherited["PATH"], "/usr/sbin"])
        self.environment = {**inherited, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": path, "HF_HUB_OFFLINE": "1"}
        self.environment["OMP_NUM_THREADS"] = "1"

    def control(self, *arguments: str) -> None:
        command = ["bash", str(ROOT / "tests/slurm/cluster.sh"), arguments[0], str(self.folder), *arguments[1:]]
        subprocess.run(command, check=True, env=self.environment, timeout=120)

    def call(self, *command: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        environment = {**self.environment, **options.pop("environment", {})}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}{done.stdout}"
        return done

    def submit(self, *arguments: str, cwd: Path, **environment: str) -> str:
        done = self.call("sbatch", "--parsable", "--output=job.out", *arguments, cwd=cwd, environment=environment)
        return done.stdout.strip().split(";")[0]

    def job(self, number: str) -> dict[str, str]:
        line = self.call("scontrol", "-o", "show", "job", number).stdout
        return dict(re.findall(r"(\w+)=(\S*)", line.splitlines()[0]))

    def wait(self, number: str, seconds: float = 120, *, until: Callable[[dict], bool] | None = None) -> dict[str, str]:
        """The job's record as soon as it has ended (or ``until`` holds)."""
        deadline = time.monotonic() + seconds
        while True:
            record = self.job(number)
            if until(record) if until else record["JobState"] in ENDED:
                return record
            if time.monotonic() > deadline:
                self.call("scancel", number, check=False)
                raise AssertionError(f"job {number} after {seconds} s: {record}")
            time.sleep(0.3)

    def code(self, number: str, seconds: float = 120) -> int:
        """Exit code of the batch script."""
        return int(self.wait(number, seconds)["ExitCode"].split(":")[0])

    def revive(self, node: str) -> None:
        self.control("revive", node)
        deadline = time.monotonic() + 60
        while "idle" not in self.call("sinfo", "-h", "-n", node, "-o", "%T").stdout:
            assert time.monotonic() < deadline, f"{node} did not come back"
            time.sleep(0.3)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    reason = obstacle()
    if reason:
        pytest.skip(reason)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.control("start", "2", "4", "2")
        yield cluster
    finally:
        cluster.control("stop")


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A folder to submit from, whose name has a blank in it."""
    folder = tmp_path / "work place"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(tmp_path) -> Callable[[str, str], Path]:
    """``repository(recipe, program)``: the launchers of this repository around a recipe of the test's own."""

    def make(recipe: str, program: str) -> Path:
        folder = tmp_path / "the repository"
        shutil.copytree(ROOT / "slurm", folder / "slurm", dirs_exist_ok=True)
        (folder / "recipes").mkdir(exist_ok=True)
        (folder / "recipes" / f"{recipe}.py").write_text("import os, signal, sys, time\n" + program)
        return folder / "slurm" / "stage.sbatch"

    return make
