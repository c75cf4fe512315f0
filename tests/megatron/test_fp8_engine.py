"""The Transformer Engine side, as far as it goes without one: tensors that answer like its own, and its parameters' names."""

from unittest import mock

import pytest
import torch

from vold_nemo.megatron import architecture, fp8, names
from vold_nemo.megatron.precision import Precision
from vold_nemo.megatron.weights import matched

BLOCKWISE, TENSORWISE = (Precision("fp8", "a test", recipe, "te") for recipe in ("blockwise", "tensorwise"))


class Quantised(torch.Tensor):
    """The part of QuantizedTensor's interface that is used: usages, inner buffers, an in-place copy that quantises."""

    @staticmethod
    def parameter(rows, columns, columnwise, stubborn=False):
        found = torch.nn.Parameter(torch.zeros(rows, columns, dtype=torch.bfloat16).as_subclass(Quantised), False)
        found._rowwise_data = torch.zeros(rows, columns, dtype=torch.uint8)
        found._rowwise_scale_inv = torch.zeros(-(-rows // 128), -(-columns // 128))
        found._columnwise_data = torch.zeros(columns, rows, dtype=torch.uint8) if columnwise else None
        found.stubborn, found.received = stubborn, None
        return found

    def get_usages(self):
        return {"rowwise": True, "columnwise": self._columnwise_data is not None}

    def update_usage(self, rowwise_usage=None, columnwise_usage=None):
        if columnwise_usage is False and not self.stubborn:
            self._columnwise_data = None

    def copy_(self, values, non_blocking=False):
        self.received = values
        return self


def model(**kwargs):
    layer = torch.nn.Module()
    layer.linear_fc1, layer.norm = torch.nn.Module(), torch.nn.Module()
    layer.linear_fc1.register_parameter("weight", Quantised.parameter(256, 256, **kwargs))
    layer.norm.register_parameter("weight", torch.nn.Parameter(torch.zeros(256, dtype=torch.bfloat16)))
    whole = torch.nn.Module()
    whole.layers = torch.nn.ModuleList([layer])
    return whole


@pytest.fixture(autouse=True)
def engine():
    from vold_nemo.megatron import cpu

    cpu.enable()
    with mock.patch("megatron.core.fp8_utils.is_float8tensor", lambda tensor: isinstance(tensor, Quantised)):
        yield


def test_codes_and_scales_are_counted_and_not_the_dtype_that_the_tensor_claims():
    whole = model(columnwise=False)
    assert fp8.model_bytes(whole) == 256 * 256 + 4 * 4 + 2 * 256
    fp8.assert_held(whole, BLOCKWISE)


def test_a_column_wise_copy_is_dropped_and_one_that_stays_stops_the_run():
    whole = model(columnwise=True)
    assert fp8.model_bytes(whole) > 2 * 256 * 256
    fp8.assert_held(whole, BLOCKWISE)
    assert fp8.model_bytes(whole) == 256 * 256 + 4 * 4 + 2 * 256
    with pytest.raises(RuntimeError, match="column-wise copy"):
        fp8.assert_held(model(columnwise=True, stubborn=True), BLOCKWISE)
    with pytest.raises(RuntimeError, match="were predicted"):  # one copy may serve both, but not two
        fp8.assert_held(model(columnwise=True, stubborn=True), TENSORWISE)


def test_a_weight_is_filled_by_its_own_copy():
    whole, values = model(columnwise=False), torch.ones(256, 256)
    (store,) = fp8.stores(whole).values()
    store(values)
    assert whole.layers[0].linear_fc1.weight.received is values


def test_megatron_core_accepts_the_configuration(gloo, tmp_path):
    from tests.megatron import tiny

    tiny.save("qwen3", tmp_path, tied=True)
    assert gloo(1).run(configured, tmp_path)[0] == ("e4m3", "blockwise", True, False)


def configured(path):
    from vold_nemo.megatron import build, parallel

    layout = parallel.initialize(1, 1, seed=1, device="cpu")
    try:
        config = build.transformer_config(
            architecture.read(path), layout, dtype=torch.bfloat16, trainable=False, held=BLOCKWISE
        )
        return config.fp8, config.fp8_recipe, config.fp8_param, config.perform_initialization
    finally:
        parallel.destroy()


ENGINE_LAYER = ("self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_qkv.weight",
                "self_attention.linear_proj.weight", "self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight")
ENGINE_MLP = ("mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight")
ENGINE_EXPERTS = ("pre_mlp_layernorm.weight", "mlp.router.weight") + tuple(
    f"mlp.experts.linear_{part}.weight{expert}" for part in ("fc1", "fc2") for expert in range(16)
)  # 128 experts on 8 ranks


@pytest.mark.parametrize("name, rest, experts", [("Qwen3-8B", ENGINE_MLP, 1), ("Qwen3-30B-A3B", ENGINE_EXPERTS, 8)])
def test_its_fused_names_are_in_the_name_map(name, rest, experts):
    arch = architecture.published()[name]
    layout = mock.Mock(tensor=1, pipeline=1, virtual=1, pipeline_rank=0, expert=experts, expert_rank=experts - 1)
    parameters = {f"decoder.layers.3.{each}": each for each in (*ENGINE_LAYER, *rest)}
    places = [place for place in names.placements(arch, 1, arch.vocabulary) if place.layer == 3]
    found = {parameter: place for place, parameter in matched(places, parameters, arch, layout)}
    assert set(found) == {*ENGINE_LAYER, *rest}
    if arch.experts:
        assert found["mlp.experts.linear_fc2.weight15"].hf[0].endswith("experts.127.down_proj.weight")
