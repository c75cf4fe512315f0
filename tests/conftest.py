"""Shared fixtures: worlds of gloo ranks that live for the whole session."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil

import pytest

from tests.gloo import Workers


@pytest.fixture(scope="session")
def _worlds():
    worlds = {size: Workers(size) for size in (1, 2, 4)}
    yield worlds
    for world in worlds.values():
        world.stop()


@pytest.fixture
def gloo(_worlds):
    """``gloo(n)``: persistent world of n gloo ranks; ``gloo(n).run(function, *args)`` -> results by rank."""
    return lambda size: _worlds[size]


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
