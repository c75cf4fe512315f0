"""The index of tensors is data: nothing in it runs, and what does not fit is refused by name."""

import json
import os
import pickle
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from vold_nemo.checkpoint import index, sharded
from vold_nemo.checkpoint.shard_files import Planner, Reader, Writer
from vold_nemo.config import ConfigError

STATE = {"decoder.a": torch.randn(6, 4), "decoder.b": torch.arange(5)}


@pytest.fixture
def folder(tmp_path):
    dcp.save(dict(STATE), storage_writer=Writer(tmp_path), planner=Planner(), no_dist=True)
    return tmp_path


def test_no_pickled_index_is_written_and_what_is_written_says_every_piece(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["__0_0.distcp", "index.json"]
    assert index.shapes(folder) == {"decoder.a": (6, 4), "decoder.b": (5,)}
    back = {name: torch.empty_like(tensor) for name, tensor in STATE.items()}
    dcp.load(back, storage_reader=Reader(folder), no_dist=True)
    assert all(torch.equal(back[name], tensor) for name, tensor in STATE.items())


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_a_pickled_index_is_refused_and_never_read(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    assert index.shapes(folder)  # not looked at beside ours
    (folder / "index.json").unlink()
    with pytest.raises(ConfigError, match="may run code"):
        index.read(folder)
    assert not (folder / "pwned").exists()


def test_an_entry_that_is_no_tensor_is_neither_written_nor_read(folder):
    with pytest.raises(TypeError, match="tensors alone"):
        index.write(Metadata({"x": BytesStorageMetadata()}, None, {}), folder)
    said = json.loads((folder / "index.json").read_text())
    said["tensors"]["decoder.a"] = {"bytes": said["tensors"]["decoder.a"]["pieces"]}
    (folder / "index.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=r"decoder\.a"):
        index.read(folder)


def _a(said):
    return said["tensors"]["decoder.a"]


CHANGES = {
    "another kind of number": lambda said: _a(said).update(dtype="object"),
    "a dtype that is no name": lambda said: _a(said).update(dtype=["float32"]),
    "a larger tensor": lambda said: _a(said).update(shape=[7, 4]),
    "a smaller tensor": lambda said: _a(said).update(shape=[5, 4]),
    "no piece": lambda said: _a(said).update(pieces=[]),
    "a piece twice": lambda said: _a(said).update(pieces=_a(said)["pieces"] * 2),
    "a file outside": lambda said: said.update(files=["../__0_0.distcp"]),
    "a file of another name": lambda said: said.update(files=["common.pt"]),
    "a file that is not there": lambda said: _a(said)["pieces"][0].__setitem__(0, 5),
    "a negative place": lambda said: _a(said)["pieces"][0].__setitem__(1, -1),
    "another tensor's bytes": lambda said: _a(said)["pieces"][0].__setitem__(1, said["tensors"]["decoder.b"]["pieces"][0][1]),
    "a truth for a number": lambda said: _a(said)["pieces"][0].__setitem__(2, True),
    "no pieces at all": lambda said: _a(said).pop("pieces"),
    "no tensors": lambda said: said.pop("tensors"),
    "tensors as a list": lambda said: said.update(tensors=[1]),
    "another format": lambda said: said.update(format=9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_by_name(change, folder):
    said = json.loads((folder / "index.json").read_text())
    CHANGES[change](said)
    (folder / "index.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="checkpoint index"):
        index.read(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"format": 1' + b"0" * 5000 + b"}"])
def test_what_is_no_index_is_refused_by_name(content, folder):
    (folder / "index.json").write_bytes(content)
    with pytest.raises(ConfigError, match="checkpoint index"):
        index.read(folder)


def test_the_common_part_is_data_whatever_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    for content in (Evil(), {"a": Evil()}):
        torch.save(content, tmp_path / "common.pt")
        with pytest.raises(ConfigError, match="tensors and plain values"):
            sharded.read_data(tmp_path / "common.pt")
    (tmp_path / "common.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="tensors and plain values"):
        sharded.read_data(tmp_path / "common.pt")
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "whole.pt")
    assert len(sharded.read_data(tmp_path / "whole.pt")["a"]) == 100_000
    bomb = zipfile.ZipFile(tmp_path / "common.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(ConfigError, match="it is packed"):
        sharded.read_data(tmp_path / "common.pt")
    (tmp_path / "common.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="tensors and plain values"):
        sharded.read_data(tmp_path / "common.pt")
    assert not (tmp_path / "pwned").exists()
