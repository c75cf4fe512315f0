"""Mixtures of experts: logits as transformers', and the same bytes back, with experts whole on their ranks."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.megatron import tiny
from tests.megatron.test_exchange import by_way, received
from vold_nemo.megatron import architecture, tensors
from vold_nemo.megatron.names import hf_names

LAYOUTS = [  # world, tensor, pipeline, sequence parallelism, expert
    (1, 1, 1, False, 1), (2, 2, 1, True, 1), (2, 1, 1, False, 2), (2, 1, 2, False, 1), (2, 2, 1, True, 2),
    (4, 2, 1, True, 4), (4, 1, 2, False, 2), (4, 2, 2, True, 2),
]
NAMES = ["separate", "packed", "published", "raw"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Experts one by one (Qwen3), packed as transformers 5 writes them, and packed transposed, as Qwen3-VL published them;
    and a router whose probabilities are not scaled to sum to 1."""
    root = tmp_path_factory.mktemp("experts")
    ids = tiny.tokens()
    with torch.no_grad():
        expected = {
            "separate": tiny.save("qwen3_moe", root / "separate", tied=False)(input_ids=ids).logits,
            "packed": tiny.save("qwen3_vl_moe", root / "packed", tied=False)(input_ids=ids).logits,
            "published": tiny.save("qwen3_vl_moe", root / "published", tied=False)(input_ids=ids).logits,
            "raw": tiny.save("qwen3_moe", root / "raw", tied=True, norm_topk_prob=False)(input_ids=ids).logits,
        }
    turned = {
        name: value.transpose(1, 2).contiguous() if ".experts." in name else value
        for name, value in load_file(root / "published" / tensors.SINGLE).items()
    }
    save_file(turned, root / "published" / tensors.SINGLE, metadata={"format": "pt"})
    return root, ids, expected


@pytest.mark.parametrize(("name", "layout"), [("separate", layout) for layout in LAYOUTS]
                         + [(name, LAYOUTS[i]) for name in NAMES[1:] for i in (0, 4)], ids=str)
def test_logits_equal_transformers(checkpoints, name, layout, gloo):
    root, ids, expected = checkpoints
    world, tensor, pipeline, sequence, expert = layout
    results = gloo(world).run(tiny.logits, root / name, tensor, pipeline, sequence, ids, expert)
    last = [found for found in results if found is not None]
    assert len(last) == world // pipeline and expected[name].std() > 0.1
    for found in last:
        assert (found - expected[name]).abs().max() < 1e-4


@pytest.mark.parametrize("layout", [(2, 2, 1, False, 2), (4, 1, 2, False, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_streamed_weights_are_the_bytes_and_names_on_disk(checkpoints, name, layout, gloo):
    folder = checkpoints[0] / name
    world, tensor, pipeline, _, expert = layout
    expected = {key: value for key, value in load_file(folder / tensors.SINGLE).items() if "visual" not in key}
    for found in gloo(world).run(tiny.streamed, folder, tensor, pipeline, torch.float32, expert):
        assert list(found) == hf_names(architecture.read(folder)) and found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", ["separate", "published"])
def test_a_sync_brings_the_bytes_on_disk_in_every_dimension_of_the_layout_at_once(checkpoints, name, gloo):
    folder = checkpoints[0] / name
    expected = {key: value for key, value in load_file(folder / tensors.SINGLE).items() if "visual" not in key}
    for _, _, named in by_way(gloo(4).run(received, folder, 2, 2, 2, 1, 1600)):  # whole tensors, in small rounds
        found = dict(named)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())
