"""A manifest keeps its own digest: no byte of it changes unseen."""

import contextlib
import json

import pytest

from vold_nemo.config import manifest

FILES = {"a/b": {"bytes": 3, "sha256": "0" * 64}}


def test_no_change_of_a_single_byte_goes_unseen():
    whole = manifest.text({"format": manifest.FORMAT, "step": 40, "metric": 0.25, "files": FILES}).encode()
    known = manifest.parse(whole)
    for place in range(len(whole)):
        for flip in (1, 0x20):
            changed = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
            with contextlib.suppress(manifest.Damaged):
                assert manifest.parse(changed) == known  # white space between tokens is nobody's


@pytest.mark.parametrize("name", ["", ".", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\0b", manifest.FILE])
def test_only_plain_names_inside_the_folder_are_files(name):
    with pytest.raises(manifest.Damaged, match="names inside the folder"):
        manifest.parse(manifest.text({"format": manifest.FORMAT, "files": {name: FILES["a/b"]}}).encode())


def test_a_digest_is_of_the_contents_and_not_of_how_they_are_spaced():
    said = manifest.sealed({"format": manifest.FORMAT, "files": FILES, "metric": float("nan")})
    assert manifest.parse(json.dumps(said, indent=4).encode())["digest"] == said["digest"]
