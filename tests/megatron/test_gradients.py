"""Gradients, not only the loss, are transformers' in every tensor layout, and their norm counts every shard once."""

import pytest
import torch

from tests.megatron import tiny
from vold_nemo.megatron import tensors

LAYOUTS = [(1, False), (2, False), (2, True), (4, False), (4, True)]


@pytest.fixture(scope="module", params=[("qwen2_5_vl", True), ("qwen3", False)], ids=["qwen2_5_vl-tied", "qwen3-untied"])
def reference(request, tmp_path_factory):
    kind, tied = request.param
    path = tmp_path_factory.mktemp(kind)
    model = tiny.save(kind, path, tied=tied)
    ids = tiny.tokens()
    logits = model(input_ids=ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.reshape(-1, logits.size(-1)), ids[:, 1:].reshape(-1)).backward()
    on_disk = tensors.index(path)
    gradients = {}
    for name, parameter in model.named_parameters():
        name = name.replace("model.language_model.", "model.")
        if name in on_disk and "visual" not in name:
            gradients[name] = parameter.grad
    return path, ids, gradients


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"tp{x[0]}{'sp' if x[1] else ''}")
def test_gradients_equal_transformers(reference, layout, gloo):
    path, ids, expected = reference
    tensor, sequence = layout
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for found, found_norm in gloo(tensor).run(tiny.gradients, path, tensor, sequence, ids):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() < 1e-5 * norm, name
        assert found_norm == pytest.approx(norm.item(), rel=1e-5)
