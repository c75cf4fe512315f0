"""Shared fixtures: gloo ranks that live for the whole session and a tiny world."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil

import pytest

from tests.gloo import Ranks


@pytest.fixture(scope="session")
def gloo():
    """``gloo(n)``: n gloo ranks; ``gloo(n).run(function, *args)`` -> results by rank."""
    ranks = Ranks()
    yield ranks.of
    ranks.stop()


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


def pytest_collection_modifyitems(items):
    """The demo, the longest file, goes first: two workers share out whole files in this order."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")
