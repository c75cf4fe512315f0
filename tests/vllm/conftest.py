"""vLLM lives in an environment of its own (`make test-vllm`): elsewhere these tests say so and are skipped."""

import importlib.util

import pytest

from tests.gloo import Ranks


@pytest.fixture(scope="session")
def gloo():
    """``gloo(n)``, as everywhere; a world of another size has processes of its own, since a kept engine knows its world."""
    worlds: dict[int, Ranks] = {}
    yield lambda size: worlds.setdefault(size, Ranks()).of(size)
    for ranks in worlds.values():
        ranks.stop()


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        here = __file__.rpartition("/")[0]
        for item in items:
            if str(item.path).startswith(here):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: make test-vllm has an environment for it"))
