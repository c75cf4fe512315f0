"""The emulated FP8 teacher: its numbers, its bytes, and that nothing of it stays in bf16 by accident."""

import subprocess
import sys

import pytest
import torch

from tests.megatron import fp8_jobs, tiny
from tests.megatron.test_float8 import reference
from vold_nemo.megatron import architecture
from vold_nemo.planning import allocation
from vold_nemo.planning.allocation import Placement


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    tiny.save("qwen3", folder, tied=False, dtype=torch.bfloat16, **fp8_jobs.WIDE)
    return folder


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    shape = dict(fp8_jobs.WIDE, num_experts=4, moe_intermediate_size=128, num_hidden_layers=2)
    tiny.save("qwen3_moe", folder, tied=True, dtype=torch.bfloat16, **shape)
    return folder


def rounded_logits(path, ids, recipe):
    """transformers' logits with every linear weight of the decoder rounded by the reference, as Megatron puts them together."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
    arch = architecture.read(path)
    per_group = arch.heads // arch.kv_groups * arch.head_dim

    def write(parts, rows):
        whole = reference(torch.cat([part[a:z] for part, a, z in rows]), recipe).float()
        at = 0
        for part, a, z in rows:
            part[a:z] = whole[at : at + z - a]
            at += z - a

    with torch.no_grad():
        for layer in model.model.layers:
            attention, triples = layer.self_attn, []
            for group in range(arch.kv_groups):
                for projection, width in (("q_proj", per_group), ("k_proj", arch.head_dim), ("v_proj", arch.head_dim)):
                    triples.append((getattr(attention, projection).weight, group * width, (group + 1) * width))
            write(None, triples)
            write(None, [(attention.o_proj.weight, 0, arch.hidden)])
            if arch.experts:
                for expert in range(arch.experts):
                    for name in ("gate_up_proj", "down_proj"):
                        weight = getattr(layer.mlp.experts, name)[expert]
                        write(None, [(weight, 0, len(weight))])
            else:
                write(None, [(layer.mlp.gate_proj.weight, 0, arch.ffn), (layer.mlp.up_proj.weight, 0, arch.ffn)])
                write(None, [(layer.mlp.down_proj.weight, 0, arch.hidden)])
        return model(ids).logits


@pytest.mark.parametrize("recipe, world, tensor, pipeline, sequence", [
    ("blockwise", 1, 1, 1, False), ("blockwise", 2, 2, 1, True), ("blockwise", 2, 1, 2, False), ("blockwise", 4, 2, 2, False),
    ("mxfp8", 2, 2, 1, False), ("tensorwise", 1, 1, 1, False),
])  # fmt: skip
def test_logits_are_transformers_with_rounded_weights(gloo, dense, recipe, world, tensor, pipeline, sequence):
    ids = tiny.tokens()
    wanted = rounded_logits(dense, ids, recipe)
    found = gloo(world).run(fp8_jobs.logits, dense, tensor, pipeline, sequence, ids, recipe, False)
    for logits in found:
        if logits is not None:
            torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-3 * wanted.abs().max().item())


def test_experts_are_rounded_each_on_its_own_rank(gloo, mixture):
    ids = tiny.tokens()
    wanted = rounded_logits(mixture, ids, "blockwise")
    for logits in gloo(2).run(fp8_jobs.logits, mixture, 1, 1, False, ids, "blockwise", False, 2):
        torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-3 * wanted.abs().max().item())


def test_layouts_agree_where_inputs_are_rounded_too(gloo, dense):
    ids = tiny.tokens()
    plain = gloo(1).run(fp8_jobs.logits, dense, 1, 1, False, ids, "blockwise", True)[0]
    unrounded = gloo(1).run(fp8_jobs.logits, dense, 1, 1, False, ids, "blockwise", False)[0]
    moved = (plain - unrounded).norm()
    assert moved > 0.01 * unrounded.norm()  # inputs are rounded
    for world, layout in ((2, (2, 1, True)), (2, (1, 2, False)), (4, (2, 2, True))):
        for logits in gloo(world).run(fp8_jobs.logits, dense, *layout, ids, "blockwise", True):
            if logits is not None:  # a sum in another order may push a value over a rounding edge, here and there
                assert (logits - plain).norm() < 0.1 * moved


@pytest.mark.parametrize("recipe", ["blockwise", "mxfp8", "tensorwise"])
@pytest.mark.parametrize("world, tensor, pipeline", [(1, 1, 1), (2, 2, 1), (2, 1, 2)])
def test_bytes_are_the_plans_and_a_weight_takes_one(gloo, dense, recipe, world, tensor, pipeline):
    arch = architecture.read(dense)
    padded = architecture.padded_vocabulary([arch.vocabulary], tensor)
    for stage, found, dtypes in gloo(world).run(fp8_jobs.bytes_held, dense, tensor, pipeline, recipe):
        at = Placement(tensor, pipeline, world // (tensor * pipeline), stage)
        plan = allocation.frozen(arch, at, padded, "fp8", recipe)
        assert found == plan.parameters
        assert found < 0.7 * allocation.frozen(arch, at, padded, "bf16").parameters
        for name, dtype in dtypes.items():
            assert (dtype == "torch.float8_e4m3fn") == (".linear_" in name and name.endswith(".weight")), (name, dtype)
            assert dtype in ("torch.float8_e4m3fn", "torch.bfloat16")


def test_the_router_stays_bf16(gloo, mixture):
    for _, _, dtypes in gloo(2).run(fp8_jobs.bytes_held, mixture, 1, 1, "blockwise", 2):
        kept = {name for name, dtype in dtypes.items() if dtype == "torch.bfloat16"}
        assert any("router" in name for name in kept) and not any(".linear_" in name for name in kept)
        assert sum("experts" in name for name in dtypes) == 2 * 2 * 2  # two of four experts, two layers, two matrices


def test_a_layer_that_was_not_quantised_stops_the_run(gloo, dense):
    with pytest.raises(AssertionError, match=r"layers\.1\.mlp\.linear_fc2\.weight is not in FP8"):
        gloo(1).run(fp8_jobs.one_layer_in_bf16, dense)


@pytest.mark.long
@pytest.mark.parametrize("how", ["bf16", "fp8"])
def test_loading_needs_less_than_one_and_a_third_of_the_largest_tensor_beyond_what_is_kept(tmp_path, how):
    found = subprocess.run(
        [sys.executable, "-m", "tests.megatron.loading_memory", str(tmp_path), how], capture_output=True, text=True, timeout=280
    )
    assert found.returncode == 0, found.stderr
    kept, largest, beyond = map(int, found.stdout.split()[-3:])
    assert kept > 150e6
    assert beyond < 1.3 * largest, (kept, largest, beyond)
