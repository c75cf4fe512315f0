"""Transformer Engine's own layers over the stand-in, in a process that plays a GPU (:mod:`tests.rehearsal.engine_job`)."""

import json
import shutil
import subprocess
import sys
from functools import cache

import pytest

from tests.rehearsal import engine_job_shapes as shapes
from vold_nemo.megatron.precision import weight_bytes
from vold_nemo.rehearsal import engine

# In `make test` rehearsals of whole steps stand for them.
pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]
BF16, FP32 = 2, 4


@cache
def found(capability: str) -> dict:
    try:
        site = engine.cached()
    except RuntimeError as error:
        pytest.skip(str(error))
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler: a rehearsal compiles 60 lines")
    command = [sys.executable, "-m", "tests.rehearsal.engine_job", str(site), capability]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND "))


def layer(name: str) -> dict:
    return found("9.0")["layers"][name]


def test_a_fused_norm_keeps_its_input_its_output_and_a_number_a_row():
    kept = shapes.TOKENS * shapes.HIDDEN * BF16
    assert layer("norm")["kept"] == [shapes.TOKENS * FP32, kept, kept]


def test_a_linear_layer_keeps_its_input_alone_and_no_copy_of_its_weight():
    assert layer("linear")["kept"] == [shapes.TOKENS * shapes.HIDDEN * BF16]
    assert layer("linear")["backward"] == {"cublas_gemm": 2}


@pytest.mark.parametrize("name", ["attention", "packed"])
def test_attention_is_fused_and_keeps_no_matrix_of_scores(name):
    rows = 2 * shapes.TOKENS
    query, key = rows * 8 * 64 * BF16, rows * 2 * 64 * BF16
    bounds, rng, statistics = 3 * 4, 2 * 8, rows * 8 * FP32
    assert layer(name)["kept"] == sorted([query, query, key, key, statistics, rng, bounds])  # query's size: the output's
    assert layer(name)["backward"] == {"fused_attn_bwd": 1}


def test_work_of_attention_counts_pairs_within_a_sequence():
    one = 8 * (64 + 64)  # operations of a pair, halved by the causal mask, over all heads
    assert layer("attention")["work"]["fused_attn_fwd bfloat16"] == 2 * shapes.TOKENS**2 * one
    assert layer("packed")["work"]["fused_attn_fwd bfloat16"] == (256**2 + (2 * shapes.TOKENS - 256) ** 2) * one


def test_an_update_of_all_parameters_is_one_launch():
    assert layer("adam")["launches"] == {"multi_tensor_adam": 1}


@pytest.mark.parametrize("capability, recipe", [("9.0", "tensorwise"), ("9.0", "blockwise"), ("10.0", "tensorwise"),
                                                ("10.0", "mxfp8")])  # fmt: skip
def test_a_frozen_fp8_weight_takes_the_bytes_that_are_planned(capability, recipe):
    assert found(capability)["recipes"][recipe]["bytes"] == weight_bytes(shapes.WIDE, shapes.HIDDEN, recipe)


@pytest.mark.parametrize("capability, recipe", [("9.0", "tensorwise"), ("9.0", "blockwise"), ("10.0", "tensorwise"),
                                                ("10.0", "mxfp8")])  # fmt: skip
def test_an_fp8_layer_multiplies_on_fp8_units(capability, recipe):
    work = found(capability)["recipes"][recipe]["work"]
    assert work["cublas_gemm float8_e4m3fn"] == 2 * shapes.TOKENS * shapes.HIDDEN * shapes.WIDE


@pytest.mark.parametrize("capability, recipe", [("9.0", "tensorwise"), ("9.0", "blockwise"), ("10.0", "mxfp8")])
def test_a_backward_pass_through_a_frozen_weight_is_refused_as_its_other_copy_is_missing(capability, recipe):
    assert found(capability)["recipes"][recipe]["backward"] == "Input A is missing column-wise usage"


def test_blackwell_reads_a_tensorwise_weight_along_either_axis():
    assert found("10.0")["recipes"]["tensorwise"]["backward"] is None


@pytest.mark.parametrize(
    "recompute, products, norms, attentions", [("none", 0, 0, 0), ("selective", 2, 1, 0), ("full", 4, 2, 1)]
)
def test_recomputation_forms_again_what_it_did_not_keep(recompute, products, norms, attentions):
    """Of 2 layers: ``selective`` the feed-forward, ``full`` everything.  A backward pass has two products a forward one."""
    forward, backward = found("9.0")["models"][recompute]
    ropes = 2 * 2  # of queries and keys
    assert forward == {"cublas_gemm": 2 * 4, "rmsnorm_fwd": 2 * 2 + 1, "fused_attn_fwd": 2, "fused_rope_forward": ropes}
    assert backward["fused_rope_backward"] == ropes
    assert backward.get("fused_rope_forward", 0) == ropes * attentions
    assert backward["cublas_gemm"] == 2 * 8 + 2 * products
    assert backward.get("rmsnorm_fwd", 0) == 2 * norms
    assert backward.get("fused_attn_fwd", 0) == 2 * attentions


def test_experts_multiply_their_equal_share_of_tokens_in_fp8():
    experts = found("9.0")["models"]["experts"]
    assert "blockwise" in experts["held"]
    assert experts["work"]["multi_tensor_gemm float8_e4m3fn"] == experts["expected"]


def test_an_expert_without_tokens_multiplies_nothing_and_has_a_gradient_all_the_same():
    experts = layer("experts")
    assert experts["launches"]["multi_tensor_gemm"] == 3 * 2  # outputs, gradients of inputs and of weights; two experts
    assert experts["work"]["multi_tensor_gemm bfloat16"] == 3 * 2 * shapes.TOKENS * shapes.HIDDEN * shapes.WIDE
    assert experts["gradients"] == [[shapes.WIDE, shapes.HIDDEN]] * 3


def test_kernels_in_triton_are_launched_and_not_run():
    assert layer("permutation")["launches"] == {f"triton _row_id_map_pass_{n}_kernel": 1 for n in (1, 2, 3)}


def test_scales_have_the_shapes_that_the_python_layer_expects():
    pairs = found("9.0")["scale shapes"]
    assert len(pairs) == 24 and all(allocated == expected for allocated, expected in pairs)
