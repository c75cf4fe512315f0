"""FP8 codes and scales against a reference that takes one block at a time in float64."""

import math

import pytest
import torch

from vold_nemo.megatron import float8
from vold_nemo.megatron.precision import BLOCK

RECIPES = tuple(BLOCK)


def reference(values: torch.Tensor, recipe: str) -> torch.Tensor:
    """Round trip of [r, c], block by block; only the cast to e4m3 is torch's."""
    block = BLOCK[recipe] or tuple(values.shape)
    out = torch.zeros(values.shape, dtype=torch.float64)
    for i in range(0, values.shape[0], block[0]):
        for j in range(0, values.shape[1], block[1]):
            part = values[i : i + block[0], j : j + block[1]].double()
            largest = part.abs().max().item()
            if largest == 0:
                continue
            scale = largest / 448
            if recipe != "tensorwise":
                scale = 2.0 ** math.ceil(math.log2(scale))
            out[i : i + block[0], j : j + block[1]] = (part / scale).float().to(torch.float8_e4m3fn).double() * scale
    return out


def random(rows, columns, spread=3.0):
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return torch.randn(rows, columns, generator=generator) * torch.exp(spread * torch.randn(rows, 1, generator=generator))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(256, 384), (200, 130), (1100, 64), (1, 7)], ids=str)
def test_codes_times_scales_are_the_references(recipe, shape):
    values = random(*shape)
    codes, block = torch.empty(shape, dtype=torch.float8_e4m3fn), BLOCK[recipe]
    scales = torch.empty(float8.scale_shape(shape, block))
    float8.quantise(values, block, codes, scales)
    found = float8.dequantise(codes, scales, block).double()
    difference = (found - reference(values, recipe)).abs()
    # a quotient that lies between two codes may fall to either side: float32 here, float64 there
    assert (difference <= 1e-6 * values.abs()).float().mean() > 0.999
    assert bool((difference <= 2**-3 * values.abs() + scales.max() * 2**-9).all())


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_input_keeps_four_significant_bits_and_zeros_stay_zeros(recipe):
    values = random(64, 256, spread=0.5)
    values[:, :128] = 0.0
    found = float8.round_trip(values, BLOCK[recipe] and (1, BLOCK[recipe][1]))
    assert bool((found[:, :128] == 0).all())
    shown = values.abs() > values.abs().amax() * 2**-10  # smaller ones are subnormal in e4m3
    assert ((found - values).abs() / values.abs())[shown].max() <= 2**-4
    assert found.shape == values.shape and found.dtype is torch.float32


def test_the_largest_value_of_a_block_is_never_lost():
    for largest in (448.0, 448.1, 1e-20, 3e4, 2.0**-130):
        values = torch.tensor([[largest, -largest / 3]])
        for recipe in RECIPES:
            found = float8.round_trip(values, BLOCK[recipe])
            assert bool(found.isfinite().all())
            if largest > 1e-30:
                assert abs(found[0, 0].item() / largest - 1) <= 2**-4
