"""Item ``fp8_linear``: one linear layer of Transformer Engine in FP8, held and filled as the teacher's layers are.

What e4m3 with its 3 bits of mantissa does to a value is known: it is moved by at most half of 2^-3 of its power of two, so by
2^-4 of itself; errors are spread evenly, so that their root mean square is at most 2^-3 / sqrt(12) = 3.6 % of the value.
"""

from __future__ import annotations

import contextlib
import math

import torch

from tests.gpu.place import Place, relative
from vold_nemo.config import ConfigError, FP8Config, TeacherConfig

ROWS, COLUMNS, TOKENS = 3072, 4096, 1024  # not square, so that a transposed copy would be found
HALF_STEP = 2**-4
RMS = 2**-3 / math.sqrt(12)


def recipes(place: Place) -> dict[str, str]:
    """Recipes that the project takes on this GPU, and why it does not take the others."""
    from vold_nemo.megatron import fp8, precision
    from vold_nemo.megatron.architecture import read

    found = {}
    for name in precision.MULTIPLE:
        asked = TeacherConfig(path="Qwen/Qwen3-8B", precision="fp8", fp8=FP8Config(recipe=name))
        try:
            precision.choose(asked, "bf16", fp8.hardware(place.device), read("Qwen/Qwen3-8B"), 1)
        except ConfigError as error:
            found[name] = str(error.allowed)
        else:
            found[name] = ""
    return found


def engines_recipe(name: str):
    from transformer_engine.common import recipe

    return {"tensorwise": recipe.Float8CurrentScaling, "blockwise": recipe.Float8BlockScaling,
            "mxfp8": recipe.MXFP8BlockScaling}[name](fp8_format=recipe.Format.E4M3)  # fmt: skip


def fp8_linear(place: Place) -> None:
    place.needs_fp8()
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(ROWS, COLUMNS, generator=generator) / math.sqrt(COLUMNS)).to(torch.bfloat16)
    inputs = torch.randn(TOKENS, 1, COLUMNS, generator=generator).to(torch.bfloat16).to(place.device)
    wanted = inputs.float() @ weight.to(place.device).float().t()
    place.say(
        shape=[ROWS, COLUMNS], tokens=TOKENS, bf16_bytes=2 * ROWS * COLUMNS,
        bf16_error=relative(inputs @ weight.to(place.device).t(), wanted) if place.kind == "gpu" else None,
    )  # fmt: skip
    for name, barred in recipes(place).items():
        if barred:
            place.say(**{f"{name}_left_out": barred})
        else:
            _one(place, name, weight, inputs, wanted)


def _one(place: Place, name: str, weight: torch.Tensor, inputs: torch.Tensor, wanted: torch.Tensor) -> None:
    import transformer_engine.pytorch as te

    from vold_nemo.megatron import fp8
    from vold_nemo.megatron.precision import weight_bytes

    recipe = engines_recipe(name)
    with torch.no_grad(), quantised(te, recipe):
        layer = te.Linear(COLUMNS, ROWS, bias=False, params_dtype=torch.bfloat16)
    layer.requires_grad_(False)
    layer.weight.copy_(weight)  # from the host, as `weights.load_hf` fills it
    if not fp8.is_quantised(layer.weight):
        raise RuntimeError(f"{name}: the weight is a {type(layer.weight).__name__}, and no FP8 tensor of Transformer Engine")
    usages = layer.weight.get_usages()
    place.say(**{f"{name}_usages": {key: bool(value) for key, value in usages.items()}})
    planned = weight_bytes(ROWS, COLUMNS, name)
    place.check(
        f"{name}_bytes", fp8.tensor_bytes(layer.weight), "a byte a value and its scales, held once (2 % for padded scales)",
        at_least=planned, at_most=planned * (1 + fp8.TOLERANCE), kind="bytes",
    )  # fmt: skip
    held = layer.weight.dequantize(dtype=torch.float32).cpu()
    place.check(f"{name}_rounding_rms", relative(held, weight.float()), "e4m3: 2^-3 / sqrt(12)", at_most=RMS)
    place.check(
        f"{name}_rounding_worst", _worst(held, weight.float(), name),
        "e4m3: half a step, 2^-4 of a value, or half of the smallest code times the scale; 1 = just that", at_most=1.001,
    )  # fmt: skip
    with torch.no_grad(), autocast(te, recipe):
        product = layer(inputs)
    error = relative(product, wanted)
    because = "input and weight are rounded independently: sqrt(2) x 2^-3 / sqrt(12); below 1 % it would not be FP8 at all"
    place.check(f"{name}_product_error", error, because, at_least=0.01, at_most=math.sqrt(2) * RMS)


def _worst(held: torch.Tensor, weight: torch.Tensor, name: str) -> float:
    """Largest error over what e4m3 allows it to be; scales of blocks are powers of two, so up to twice the exact one."""
    from vold_nemo.megatron.float8 import LARGEST
    from vold_nemo.megatron.precision import BLOCK

    block = BLOCK[name]
    if block is None:
        scale = weight.abs().max() / LARGEST
    else:
        parts = weight.view(ROWS // block[0], block[0], COLUMNS // block[1], block[1])
        scale = (2 * parts.abs().amax(dim=(1, 3), keepdim=True) / LARGEST).expand_as(parts).reshape(ROWS, COLUMNS)
    allowed = torch.maximum(HALF_STEP * weight.abs(), 2**-10 * scale * torch.ones_like(weight))  # smallest code: 2^-9
    return float(((held - weight).abs() / allowed.clamp(min=1e-30)).max())


def quantised(te, recipe):
    """Quantised initialisation under the name that this version of Transformer Engine has for it."""
    make = getattr(te, "quantized_model_init", None) or te.fp8_model_init
    return make(enabled=True, recipe=recipe, preserve_high_precision_init_val=False)


def autocast(te, recipe) -> contextlib.AbstractContextManager:
    if hasattr(te, "autocast"):
        return te.autocast(enabled=True, recipe=recipe)
    return te.fp8_autocast(enabled=True, fp8_recipe=recipe)
