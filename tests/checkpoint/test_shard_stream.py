"""Sharded weights as the stream, a layer at a time: the source's bytes, whoever wrote them; another model's are refused."""

import pytest
import torch
from safetensors.torch import load_file

from tests.megatron import tiny
from vold_nemo.config import ConfigError
from vold_nemo.megatron import architecture, tensors
from vold_nemo.megatron.names import hf_names


def saved(path, folder, tensor, pipeline, expert=1):
    """On every rank: the weights of ``path`` as this layout writes them into ``folder``."""
    import torch.distributed as dist

    from vold_nemo.checkpoint import sharded
    from vold_nemo.megatron import parallel

    model, _, layout = tiny.built(path, tensor, pipeline, expert=expert)
    try:
        if layout.rank == 0:
            folder.mkdir()
        dist.barrier()
        sharded.save_model(model, folder)
    finally:
        parallel.destroy()


def streamed(folder, path):
    from vold_nemo.checkpoint import shard_stream
    from vold_nemo.megatron import parallel

    layout = parallel.initialize(1, 1, seed=1, device="cpu")
    try:
        return dict(shard_stream.stream_shards(folder, architecture.read(path), layout, torch.float32))
    except ConfigError as error:
        return str(error)
    finally:
        parallel.destroy()


def loaded(folder, path, pipeline=1):
    """What a whole model, built as ``path``, says of the weights in ``folder``."""
    from vold_nemo.checkpoint import sharded
    from vold_nemo.megatron import parallel

    model, _, _ = tiny.built(path, 1, pipeline)
    try:
        sharded.load_model(model, folder)
    except ConfigError as error:
        return str(error)
    finally:
        parallel.destroy()


@pytest.mark.parametrize(
    ("kind", "tied", "layout"),
    [("qwen2", False, (2, 1, 1)), ("qwen3_vl", True, (1, 2, 1)), ("qwen3_moe", False, (1, 1, 2)),
     ("qwen3_vl_moe", True, (2, 1, 2))],
    ids=str,
)  # fmt: skip
def test_layer_by_layer_the_stream_is_the_bytes_and_names_on_disk(kind, tied, layout, tmp_path, gloo):
    tiny.save(kind, tmp_path, tied=tied)
    gloo(2).run(saved, tmp_path, tmp_path / "shards", *layout)
    found = gloo(1).run(streamed, tmp_path / "shards", tmp_path)[0]
    expected = {name: value for name, value in load_file(tmp_path / tensors.SINGLE).items() if "visual" not in name}
    assert list(found) == hf_names(architecture.read(tmp_path)) and found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [("qwen3", dict(tied=True), ("output_layer.weight", "would be lost")),
     ("qwen3", dict(tied=False, num_hidden_layers=2), ("layer_norm_weight", "[4, 64]", "[2, 64]")),
     ("qwen2", dict(tied=False), ("linear_proj.weight", "[4, 64, 128]", "[4, 64, 64]"))],
    ids=["another-head", "fewer-layers", "another-family"],
)  # fmt: skip
def test_weights_of_another_model_are_refused_with_both_names(kind, changes, words, tmp_path, gloo):
    tiny.save("qwen3", tmp_path / "trained", tied=False)
    tiny.save(kind, tmp_path / "other", **changes)
    shards = tmp_path / "shards"
    gloo(1).run(saved, tmp_path / "trained", shards, 1, 1)
    said = [gloo(1).run(streamed, shards, tmp_path / "other")[0], *gloo(1).run(loaded, shards, tmp_path / "other"),
            *gloo(2).run(loaded, shards, tmp_path / "other", 2)]
    assert all(isinstance(message, str) and str(shards) in message and "export.source" in message for message in said)
    assert all(word in said[0] and word in said[1] for word in words), said
