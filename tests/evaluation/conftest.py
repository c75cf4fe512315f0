import pytest

from tests.evaluation.cases import published
from vold_nemo.evaluation.benchmarks.table import BENCHMARKS


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Every public benchmark in its published schema, a folder each; read only."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name in BENCHMARKS:
        published.write(root, name)
    return root
