"""Shared fixtures: worlds of gloo ranks that live for the whole session."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gloo import Ranks


@pytest.fixture(scope="session")
def _ranks():
    ranks = Ranks()
    yield ranks
    ranks.stop()


@pytest.fixture
def gloo(_ranks):
    """``gloo(n)``: n gloo ranks; ``gloo(n).run(function, *args)`` -> results by rank."""
    return _ranks.of


@pytest.fixture(scope="session")
def _tiny_world(tmp_path_factory):
    from tests.models.stages import make_world

    folder = tmp_path_factory.mktemp("tiny")
    make_world(folder)
    return folder


@pytest.fixture(scope="module")
def world(_tiny_world, tmp_path_factory):
    """Tiny student, teacher, questions and traces in a folder that the module may write into."""
    return shutil.copytree(_tiny_world, tmp_path_factory.mktemp("world") / "world")


@pytest.fixture(scope="session", autouse=True)
def demo(request, tmp_path_factory):
    """``demo()``: folder, exit code and output of the smallest `make demo`.

    Where a test asks for it, it runs beside the others from the beginning: most of its two minutes are one core's.
    """
    if not any("outputs" in item.fixturenames and item.path.name == "test_demo.py" for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("demo with a space")
    environment = {**os.environ, "SMOKE": "1", "OUTPUTS": str(folder), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    script, log = Path(__file__).parents[1] / "recipes" / "demo.sh", folder / "log"
    with log.open("w") as output:
        started = subprocess.Popen(
            ["bash", str(script)], env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    yield lambda: (folder, started.wait(timeout=780), log.read_text())
    if started.poll() is None:
        os.killpg(started.pid, 9)
