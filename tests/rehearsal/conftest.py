"""A rehearsal plays CUDA to a build of torch that has none; with another, what rehearses is skipped here."""

from pathlib import Path

import pytest
import torch

WITHOUT = ("test_engine_declarations.py",)  # rehearses nothing


def pytest_collection_modifyitems(items):
    if torch.version.cuda is None:
        return
    why = pytest.mark.skip(reason=f"this torch was built with CUDA {torch.version.cuda}: a rehearsal wants a CPU build")
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in WITHOUT:
            item.add_marker(why)
