"""What says that an export is right: it knows a wrong one in bf16, too, where rounding would hide it."""

import pytest
import torch

from tests.megatron import tiny


def verified(folder, layer_norm: float):
    """The largest difference of the bf16 model and the checkpoint that it was read from, one norm changed by ``layer_norm``."""
    from vold_nemo.checkpoint.parity import verify
    from vold_nemo.megatron import parallel

    model, arch, layout = tiny.built(folder, 1, 1, dtype=torch.bfloat16)
    model.decoder.final_layernorm.weight.data[3] *= layer_norm
    try:
        return verify(model, arch.vocabulary, folder, device=layout.device).max
    finally:
        parallel.destroy()


def test_a_bf16_export_is_compared_in_fp32_and_one_wrong_number_shows(tmp_path, gloo):
    tiny.save("qwen3", tmp_path, dtype=torch.bfloat16)
    assert gloo(1).run(verified, tmp_path, 1.0)[0] < 1e-5
    with pytest.raises(AssertionError, match="largest log-prob difference"):
        gloo(1).run(verified, tmp_path, 1.25)
