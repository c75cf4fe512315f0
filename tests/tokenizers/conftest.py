"""Checkpoint folders with published tokenizers, and a tiny world whose models have their 151,936 rows."""

import json

import pytest

from tests.tokenizers import published, world


@pytest.fixture(scope="session")
def files():
    """``files(name)``: the folder of a published tokenizer; the test is skipped, with the reason, where it cannot be had."""

    def folder(name):
        try:
            return published.folder_of(name)
        except published.Unavailable as error:
            pytest.skip(str(error))

    return folder


@pytest.fixture(scope="session")
def folders(files, tmp_path_factory):
    """{student, teacher}: a Qwen2.5 and a Qwen3 tokenizer, each beside the ``config.json`` of its family."""
    files("qwen3")
    root = tmp_path_factory.mktemp("tokenizers")
    found = {"student": published.write_qwen2_5(root / "student"), "teacher": published.write_qwen3(root / "teacher")}
    for side, model_type in (("student", "qwen2_5_vl"), ("teacher", "qwen3")):
        (found[side] / "config.json").write_text(json.dumps({"model_type": model_type}))
    return found


@pytest.fixture(scope="session")
def tokenizers(folders):
    """{student, teacher} as the product loads them."""
    from vold_nemo.data.templates import load_tokenizer

    return {side: load_tokenizer(folder) for side, folder in folders.items()}


@pytest.fixture(scope="session")
def real_world(files, tmp_path_factory):
    """Random tiny student and teacher with real vocabularies, and questions full of oddities."""
    files("qwen3")
    folder = tmp_path_factory.mktemp("world")
    world.make(folder)
    return folder
