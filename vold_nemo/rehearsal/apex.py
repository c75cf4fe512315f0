"""NVIDIA's apex as far as megatron-core asks for it, with nothing computed (``rehearse.apex=true``).

=====================================  ===============================================================================
module                                 who asks, and what for
=====================================  ===============================================================================
``fused_weight_gradient_mlp_cuda``     ``tensor_parallel/layers.py``: a weight's gradient is added to the gradient
                                       buffer by the matrix product itself; ``megatron/build.py`` looks whether it is
                                       there, and then sets ``gradient_accumulation_fusion``.  Transformer Engine's
                                       layers add up in their own products, with it or without
``amp_C``,                             ``optimizer/clip_grads.py``, ``optimizer/optimizer.py``: norm and scale of lists
``apex.multi_tensor_apply``            of tensors, where Transformer Engine is not installed
``apex.optimizers``                    ``optimizer/__init__.py``, ``optimizer/distrib_optimizer.py``: FusedAdam, likewise;
                                       NeMo asks for FusedLAMB beside it and forgives a missing module, but not a
                                       missing name
``apex``, ``apex.normalization``       ``models/gpt/gpt_layer_specs.py``, ``transformer/transformer_block.py``: once the
                                       package is there the layer norm of blocks is apex's, which is no RMSNorm
=====================================  ===============================================================================

``apex.contrib`` is compiled only when asked for (``slurm/build_gpu.sh`` does not), and so it is missing here, too.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from itertools import groupby

import torch
from torch import Tensor

from vold_nemo.rehearsal.engine import optimizer as kernels
from vold_nemo.rehearsal.engine import report
from vold_nemo.rehearsal.ledger import Ledger

CHUNK = 2048 * 32  # elements that one block of a kernel over lists takes (``apex/multi_tensor_apply/__init__.py``)


def install(ledger: Ledger) -> None:
    """Make apex importable in this process.  Before megatron-core is imported, which looks once and remembers."""
    if "megatron.core" in sys.modules:
        raise RuntimeError("megatron.core is imported already: a rehearsal installs its stand-in first")
    report.on_kernel = ledger.kernel
    _module("fused_weight_gradient_mlp_cuda", wgrad_gemm_accum_fp32=wgrad_gemm_accum_fp32,
            wgrad_gemm_accum_fp16=wgrad_gemm_accum_fp16)  # fmt: skip
    refused = {name: _unwritten(f"amp_C.{name}") for name in ("multi_tensor_adam_capturable", "multi_tensor_axpby",
               "multi_tensor_lamb", "multi_tensor_novograd", "multi_tensor_sgd")}  # fmt: skip
    _module("amp_C", multi_tensor_adam=kernels.multi_tensor_adam, multi_tensor_scale=kernels.multi_tensor_scale,
            multi_tensor_l2norm=kernels.multi_tensor_l2norm, **refused)  # fmt: skip
    apex = _module("apex")
    apex.multi_tensor_apply = _module("apex.multi_tensor_apply", multi_tensor_applier=multi_tensor_applier)
    apex.optimizers = _module("apex.optimizers", FusedAdam=FusedAdam, FusedLAMB=_Refused, FusedSGD=_Refused)
    norm = _module("apex.normalization.fused_layer_norm", FusedLayerNormAffineFunction=_Refused)
    apex.normalization = _module("apex.normalization", fused_layer_norm=norm)


def _module(name: str, **contents) -> types.ModuleType:
    module = types.ModuleType(name, "A stand-in: nothing is computed.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    if name.startswith("apex"):
        module.__path__ = []  # a package: what is missing in it is a module that is not found
    vars(module).update(contents)
    sys.modules[name] = module
    return module


def _unwritten(name: str):
    def refuse(*arguments, **settings):
        raise NotImplementedError(f"{name} is not written in the stand-in of apex")

    return refuse


class _Refused:
    """A name that is imported and not used here."""

    def __init__(self, *arguments, **settings):
        raise NotImplementedError(f"{type(self).__name__} is not written in the stand-in of apex")


# -- csrc/megatron/fused_weight_gradient_dense*.cu ---------------------------------------------------------------------


def wgrad_gemm_accum_fp32(input: Tensor, d_output: Tensor, d_weight: Tensor) -> None:
    """``d_weight += d_output^T @ input``, in place, in one call of cuBLAS without a workspace of its own."""
    _accumulate("wgrad_gemm_accum_fp32", input, d_output, d_weight, torch.float32)


def wgrad_gemm_accum_fp16(input: Tensor, d_output: Tensor, d_weight: Tensor) -> None:
    """The same into a buffer of the input's own type."""
    _accumulate("wgrad_gemm_accum_fp16", input, d_output, d_weight, input.dtype)


def _accumulate(name: str, input: Tensor, d_output: Tensor, d_weight: Tensor, into: torch.dtype) -> None:
    # The kernel reads raw memory: it takes tensors as they lie, checks the types and nothing else.
    left, right = (one.reshape(-1, one.shape[-1]) if one.dim() > 2 else one for one in (d_output, input))
    (rows, out), (same, width) = left.shape, right.shape
    if rows != same or tuple(d_weight.shape) != (out, width):
        raise RuntimeError(f"{name}: {list(left.shape)} and {list(right.shape)} into {list(d_weight.shape)}")
    if d_weight.dtype != into or input.dtype != d_output.dtype:
        raise RuntimeError(f"{name}: {input.dtype} and {d_output.dtype} into {d_weight.dtype}")
    if not all(one.is_contiguous() for one in (input, d_output, d_weight)):
        raise RuntimeError(f"{name}: a tensor that is not contiguous would be misread")
    report.kernel(name, flops=2 * rows * out * width, dtype=input.dtype)


# -- apex/multi_tensor_apply, apex/optimizers --------------------------------------------------------------------------


class _Applier:
    available = True

    def __call__(self, kernel, noop_flag, tensor_lists, *settings):
        return kernel(CHUNK, noop_flag, tensor_lists, *settings)


multi_tensor_applier = _Applier()


class FusedAdam(torch.optim.Optimizer):
    """Two moments in fp32 beside each parameter; the count of steps in the group; one call a type of parameter."""

    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True, weight_decay=0.0,
                 amsgrad=False, set_grad_none=True, capturable=False, master_weights=False):  # fmt: skip
        if amsgrad or capturable or master_weights:
            raise NotImplementedError("the stand-in of FusedAdam has neither AMSGrad nor CUDA graphs nor master weights")
        settings = dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, settings)
        self.adam_w_mode, self.set_grad_none = int(adam_w_mode), set_grad_none
        self._dummy_overflow_buf = torch.cuda.IntTensor([0])

    def zero_grad(self) -> None:
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if self.set_grad_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in given:
                if not self.state[parameter]:
                    for name in ("exp_avg", "exp_avg_sq"):
                        self.state[parameter][name] = torch.zeros_like(parameter, dtype=torch.float32)
            for _, same in groupby(sorted(given, key=lambda one: str(one.dtype)), key=lambda one: one.dtype):
                some = list(same)
                lists = [[one.grad for one in some], some, *(
                    [self.state[one][name] for one in some] for name in ("exp_avg", "exp_avg_sq")
                )]  # fmt: skip
                multi_tensor_applier(
                    kernels.multi_tensor_adam, self._dummy_overflow_buf, lists, group["lr"], *group["betas"], group["eps"],
                    group["step"], self.adam_w_mode, int(group["bias_correction"]), group["weight_decay"],
                )  # fmt: skip
        return loss
