"""A file of tensors is written in one pass: from where they lie, and summed up on the way."""

import hashlib

import pytest
import torch
import torch.distributed.checkpoint as dcp

from vold_nemo.checkpoint.shard_files import Planner, Reader, Writer, alone


def test_a_part_of_a_tensor_is_written_from_where_it_lies():
    whole = torch.arange(40, dtype=torch.float32)
    part = alone(whole[8:20].view(3, 4))
    assert part.untyped_storage().nbytes() == part.nbytes and part.data_ptr() == whole[8:].data_ptr()
    assert torch.equal(part, torch.arange(8.0, 20).view(3, 4))
    whole[8] = -1
    del whole
    assert part[0, 0] == -1  # the same memory, and it lives on
    with_gaps = torch.zeros(4, 4)[:, :2]
    assert alone(with_gaps) is with_gaps and alone(torch.zeros(0)).numel() == 0


def test_what_is_summed_on_the_way_is_what_lies_on_the_disk(tmp_path):
    state = {"a": torch.randn(300, 7), "b": torch.arange(5), "c": torch.randn(64)[3:50].to(torch.bfloat16)}
    writer = Writer(tmp_path)
    dcp.save(dict(state), storage_writer=writer, planner=Planner(), no_dist=True)
    (file,) = tmp_path.glob("*.distcp")
    assert writer.checksums[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    back = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    dcp.load(back, storage_reader=Reader(tmp_path), no_dist=True)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["whence", "seek", "truncate"])
def test_a_file_that_is_being_summed_has_no_way_back(name, tmp_path):
    with Writer(tmp_path).fs.create_stream(tmp_path / "file", "wb") as stream:
        stream.write(b"1")
        assert not hasattr(stream, name)
