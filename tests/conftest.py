"""Shared fixtures: worlds of gloo ranks that live for the whole session."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
