"""What Transformer Engine asks of tensors by exact type or by address, answered for fake ones as for real ones.

A fake tensor is a subclass without memory: ``type(x)`` is not ``torch.Tensor``, and every address is 0.  Left alone, the
attention would take its unfused path, a bf16 product an FP8 one, and tensors of different storages would seem to share one.
"""

from __future__ import annotations

import functools
import importlib

import torch
from torch._subclasses.fake_tensor import FakeTensor


def address_of_storage(storage: torch.UntypedStorage) -> int:
    """A number that is the same for two tensors if and only if they share their storage."""
    return storage._cdata


def install() -> None:
    """Called when ``transformer_engine.pytorch`` has been imported."""
    _addresses()
    _exact_types()


def _addresses() -> None:
    """``attention/dot_product_attention/utils.py: get_qkv_layout`` compares storages' addresses, ``utils.py: SplitAlongDim``
    storages', ``module/_common.py: _NoopCatFunc`` tensors'."""
    of_storage, of_tensor = torch.UntypedStorage.data_ptr, torch.Tensor.data_ptr

    @functools.wraps(of_storage)
    def storage_address(self):
        # a storage without memory is one of the device "meta": what a fake tensor of any device has
        return address_of_storage(self) if self.device.type == "meta" else of_storage(self)

    @functools.wraps(of_tensor)
    def tensor_address(self):
        if isinstance(self, FakeTensor):
            return address_of_storage(self.untyped_storage()) + self.storage_offset() * self.element_size()
        return of_tensor(self)

    torch.UntypedStorage.data_ptr = storage_address
    torch.Tensor.data_ptr = tensor_address


def _exact_types() -> None:
    """``utils.py: needs_quantized_gemm`` and ``get_attention_backend``'s ``qkv_type`` go by exact type."""
    utils = importlib.import_module("transformer_engine.pytorch.utils")
    attention = importlib.import_module("transformer_engine.pytorch.attention.dot_product_attention.utils")
    asked, choose = utils.needs_quantized_gemm, attention.get_attention_backend

    @functools.wraps(asked)
    def needs_quantized_gemm(obj, rowwise=True):
        return False if type(obj) is FakeTensor else asked(obj, rowwise)

    @functools.wraps(choose)
    def get_attention_backend(attention_params=None):
        if attention_params.qkv_type is FakeTensor:
            attention_params.qkv_type = torch.Tensor
        return choose(attention_params)

    attention.get_attention_backend = get_attention_backend
    for name in ("utils", "module.linear", "module.layernorm_linear", "module.layernorm_mlp", "module.grouped_linear"):
        module = importlib.import_module(f"transformer_engine.pytorch.{name}")
        if getattr(module, "needs_quantized_gemm", None) is asked:
            module.needs_quantized_gemm = needs_quantized_gemm
