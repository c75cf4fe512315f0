"""The Megatron model computes what transformers computes, in every layout."""

import pytest
import torch

from tests.megatron import tiny

LAYOUTS = [  # tensor, pipeline, sequence parallelism
    (1, 1, False), (2, 1, False), (2, 1, True), (4, 1, False), (4, 1, True), (1, 2, False), (2, 2, False), (2, 2, True),
]


@pytest.fixture(scope="module", params=[("qwen2_5_vl", True), ("qwen2_5_vl", False), ("qwen3", True), ("qwen3", False)],
                ids=lambda p: f"{p[0]}-{'tied' if p[1] else 'untied'}")
def checkpoint(request, tmp_path_factory):
    kind, tied = request.param
    path = tmp_path_factory.mktemp(kind)
    model = tiny.save(kind, path, tied=tied)
    ids = tiny.tokens()
    with torch.no_grad():
        return path, ids, model(input_ids=ids).logits


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"tp{x[0]}pp{x[1]}{'sp' if x[2] else ''}")
def test_logits_equal_transformers(checkpoint, layout, gloo):
    path, ids, expected = checkpoint
    tensor, pipeline, sequence = layout
    results = gloo(tensor * pipeline).run(tiny.logits, path, tensor, pipeline, sequence, ids)
    last = [found for found in results if found is not None]
    assert len(last) == tensor
    assert expected.std() > 0.1  # else the comparison says nothing
    for found in last:
        assert (found - expected).abs().max() < 1e-4


def test_qwen3_vls_language_model_in_an_uneven_pipeline(tmp_path, gloo):
    """Three layers on two stages; the bytes come back, too.  DeepStack adds nothing where there is no image."""
    from safetensors.torch import load_file

    ids = tiny.tokens()
    with torch.no_grad():
        expected = tiny.save("qwen3_vl", tmp_path, tied=True, num_hidden_layers=3)(input_ids=ids).logits
    found = gloo(2).run(tiny.logits, tmp_path, 1, 2, False, ids)[-1]
    assert expected.std() > 0.1 and (found - expected).abs().max() < 1e-4
    stored = load_file(tmp_path / "model.safetensors")
    for streamed in gloo(2).run(tiny.streamed, tmp_path, 1, 2):
        assert streamed.keys() == {name for name in stored if "visual" not in name}
        assert all(torch.equal(value, stored[name]) for name, value in streamed.items())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_vl", "qwen3_moe", "qwen3_vl_moe"])
def test_the_other_families_on_more_tensor_ranks_than_key_value_groups(kind, tmp_path, gloo):
    ids = tiny.tokens()
    with torch.no_grad():
        expected = tiny.save(kind, tmp_path, tied=False)(input_ids=ids).logits
    found = gloo(4).run(tiny.logits, tmp_path, 4, 1, True, ids)
    assert expected.std() > 0.1 and all((one - expected).abs().max() < 1e-4 for one in found)
