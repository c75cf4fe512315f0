"""The frozen teacher's linear layers in FP8: by Transformer Engine, or emulated on plain torch.

What is FP8 are the weights of the query-key-value, output, gate-up and down projections, those of experts too.  Embedding,
norms, biases, router and LM head stay bf16.  A weight is held once, row by row: the column-wise copy that a backward pass
wants is never made.  Neither the whole model nor one weight in bf16 outlives its own loading:

===========================  ============================================  ================================================
                             Transformer Engine (``te``)                   emulated
===========================  ============================================  ================================================
a layer is built             under no_grad and quantised initialisation    its bf16 weight is given back before the next
                             (megatron-core: ``fp8_param``)
a weight is filled           ``copy_`` quantises on the GPU                :func:`vold_nemo.megatron.float8.quantise`
a product is formed          by FP8 matrix units, inputs quantised too     codes x scales in fp32, inputs rounded to FP8
===========================  ============================================  ================================================

Under tensor parallelism each rank scales its own shard.  Nothing of the ``te`` column has run on a GPU yet.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vold_nemo.megatron import device as devices
from vold_nemo.megatron import float8
from vold_nemo.megatron.precision import BLOCK, Hardware, Precision, weight_bytes

LINEAR = re.compile(r"\.linear_(qkv|proj|fc1|fc2)\.weight\d*$")  # Megatron names of what FP8 holds
TOLERANCE = 0.02  # of bytes held, against the prediction


def hardware(device: torch.device) -> Hardware:
    """What this rank computes on."""
    if device.type == "cpu":
        return Hardware("cpu")
    return Hardware("cuda", devices.capability(device), _engine(), _version(devices.cuda_version()))


def _engine() -> tuple[int, int] | None:
    try:
        return _version(importlib.metadata.version("transformer-engine"))
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def config_fields(held: Precision | None) -> dict:
    """Of megatron-core's ``TransformerConfig``.  ``e4m3``: forward passes alone, where ``hybrid`` is the same."""
    if held is None or held.backend != "te":
        return {}
    return {"fp8": "e4m3", "fp8_recipe": held.recipe, "fp8_param": True}


@cache
def emulated_layers(recipe: str, activations: bool) -> tuple[type, type]:
    """(column-parallel, row-parallel) linear layers whose weight is FP8; megatron-core's otherwise, collectives included."""
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        RowParallelLinear,
        gather_from_sequence_parallel_region,
    )

    block = BLOCK[recipe]
    read = None if block is None else (1, block[1])  # an input's values share a scale along a row

    class Emulated:
        """``weight``: float8_e4m3fn codes; ``weight_scale``: fp32 (mxfp8: float8_e8m0fnu).  Dequantised call by call."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            shape, device = self.weight.shape, self.weight.device
            kind = torch.float8_e8m0fnu if recipe == "mxfp8" else torch.float32
            codes = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
            self.weight = torch.nn.Parameter(codes, requires_grad=False)
            scales = torch.empty(float8.scale_shape(tuple(shape), block), dtype=kind, device=device)
            self.register_buffer("weight_scale", scales, persistent=False)

        @torch.no_grad()
        def store_weight(self, values: Tensor) -> None:
            float8.quantise(values.to(self.weight.device), block, self.weight, self.weight_scale)

        def _forward_impl(self, input, weight, bias=None, *, sequence_parallel=False, tp_group=None, **_):
            if sequence_parallel:
                input = gather_from_sequence_parallel_region(input, group=tp_group)
            values = float8.round_trip(input, read) if activations else input.float()
            product = F.linear(values, float8.dequantise(weight, self.weight_scale, block)).to(input.dtype)
            return product if bias is None else product + bias

    class Column(Emulated, ColumnParallelLinear):
        pass

    class Row(Emulated, RowParallelLinear):
        pass

    return Column, Row


def stores(model: torch.nn.Module) -> dict[int, Callable[[Tensor], object]]:
    """By ``id`` of an FP8 parameter of ``model``: what takes the whole bf16 shard and quantises it into the parameter."""
    found = {id(m.weight): m.store_weight for m in model.modules() if hasattr(m, "store_weight")}
    return found | {id(p): p.copy_ for p in model.parameters() if is_quantised(p)}


def is_quantised(parameter: Tensor) -> bool:
    """Whether it is one of Transformer Engine's tensors."""
    from megatron.core.fp8_utils import is_float8tensor

    return is_float8tensor(parameter)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that ``tensor`` holds; of Transformer Engine's tensors those of codes, scales and whatever copy hangs on them."""
    if not is_quantised(tensor):
        return tensor.numel() * tensor.element_size()
    inner = {id(part): part for part in vars(tensor).values() if isinstance(part, Tensor)}
    return sum(part.numel() * part.element_size() for part in inner.values())


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of weights and scales on this rank."""
    return sum(tensor_bytes(t) for t in (*model.parameters(), *_scales(model)))


def _scales(model: torch.nn.Module) -> Iterator[Tensor]:
    return (module.weight_scale for module in model.modules() if hasattr(module, "store_weight"))


def assert_held(model: torch.nn.Module, held: Precision) -> None:
    """Every linear weight is FP8, once, and takes the predicted bytes within 2 %; nothing else is FP8.

    :raises RuntimeError: naming the parameter, or the bytes found and predicted.
    """
    if held.recipe is None:
        return
    predicted = 0
    emulated = {id(module.weight) for module in model.modules() if hasattr(module, "store_weight")}
    for name, parameter in model.named_parameters():
        is_linear, is_fp8 = bool(LINEAR.search(name)), id(parameter) in emulated or is_quantised(parameter)
        if is_linear != is_fp8:
            raise RuntimeError(f"{name} is {'not in FP8' if is_linear else 'in FP8'}: {held.describe()}")
        if is_fp8 and is_quantised(parameter):
            _drop_columnwise(name, parameter, held)
        predicted += weight_bytes(*parameter.shape, held.recipe) if is_fp8 else parameter.numel() * parameter.element_size()
    found = model_bytes(model)
    if abs(found - predicted) > TOLERANCE * predicted:
        raise RuntimeError(f"the teacher takes {found:,} bytes here, {predicted:,} were predicted: {held.describe()}")


def _drop_columnwise(name: str, parameter: Tensor, held: Precision) -> None:
    if not parameter.get_usages().get("columnwise", False):
        return
    parameter.update_usage(rowwise_usage=True, columnwise_usage=False)
    # From Blackwell on one per-tensor copy serves both and goes on saying so; its bytes are then counted as one.
    if held.recipe != "tensorwise" and parameter.get_usages().get("columnwise", False):
        raise RuntimeError(f"{name} keeps a column-wise copy that a frozen model never reads: {held.describe()}")
