"""megatron-core without CUDA: the one place that stands in for ``torch.cuda``.

megatron-core asks ``torch.cuda`` for its device, its random-number state, streams and events without looking
whether CUDA is there, and writes ``device="cuda"`` as a literal in a few modules.  No configuration flag changes that.
:func:`enable` answers these calls for the CPU:

=============================================  ========================================================================
call in megatron-core                          stand-in
=============================================  ========================================================================
``torch.cuda.current_device()`` as a device    ``torch.device("cpu")``
CUDA random-number state                       the CPU generator
``torch.cuda.synchronize``, ``Stream``, ...    nothing to wait for
``Tensor.cuda()``                              the tensor itself
literal ``device="cuda"``, pinned memory       those modules see a ``torch`` whose factories put the tensor on the CPU
``Tensor.type() == "torch.cuda.FloatTensor"``  the CUDA name, only for callers inside ``megatron.core.optimizer``
=============================================  ========================================================================

Where CUDA is present nothing is touched.  The stand-ins shadow functions that can only raise without CUDA, and
``torch.cuda.is_available()`` goes on saying no.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types

import torch

# Modules that write device="cuda" as a literal on a path that training, clipping or checkpointing takes.
_LITERAL_DEVICE = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.utils",
    "megatron.core.transformer.utils",
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.rerun_state_machine",
    "megatron.core.models.common.embeddings.rope_utils",
)
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "empty_like", "zeros_like")

_enabled = False


class _Stream:
    """A stream or event on a device that runs everything in order."""

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, stream) -> None:
        pass

    def wait_event(self, event) -> None:
        pass

    def record_event(self, event=None) -> _Stream:
        return event or _Stream()

    def wait(self, stream=None) -> None:
        pass

    def record(self, stream=None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _on_cpu(factory):
    """``factory`` with ``device="cuda"`` read as the CPU, and no pinned memory, which only CUDA has."""

    def make(*args, **kwargs):
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


class _TorchOnCPU(types.ModuleType):
    """``torch`` as the modules in ``_LITERAL_DEVICE`` see it: tensors asked for on CUDA are made on the CPU."""

    def __init__(self):
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name):
        return getattr(torch, name)


def _get_rng_state(device=None, clone=False, graph_safe=False) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state, device=None, graph_safe=False) -> None:
    torch.set_rng_state(new_state)


def _tensor_type(original):
    """``Tensor.type`` that calls a CPU tensor ``torch.cuda.*`` for megatron.core.optimizer, which asserts that name."""

    def type_(self, dtype=None, non_blocking=False, **kwargs):
        if dtype is not None:
            return original(self, dtype, non_blocking, **kwargs)
        name = original(self)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return name.replace("torch.", "torch.cuda.", 1) if caller.startswith("megatron.core.optimizer") else name

    return type_


def enable() -> None:
    """Make megatron-core usable where CUDA is absent; do nothing where it is present.  Idempotent.

    Call it before anything of ``megatron.core`` is used (:func:`vold_nemo.megatron.parallel.initialize` and
    :func:`vold_nemo.megatron.build.build_model` do).  Imports megatron-core.
    """
    global _enabled
    if _enabled or torch.cuda.is_available():
        return
    cpu = torch.device("cpu")
    cuda = torch.cuda
    cuda.current_device = lambda: cpu
    cuda.synchronize = lambda device=None: None
    cuda.empty_cache = lambda: None
    cuda.get_rng_state = _get_rng_state
    cuda.set_rng_state = _set_rng_state
    cuda.manual_seed = torch.manual_seed
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = cuda.default_stream = lambda device=None: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    torch.Tensor.cuda = lambda self, device=None, non_blocking=False, **kwargs: self
    torch.Tensor.type = _tensor_type(torch.Tensor.type)

    view = _TorchOnCPU()
    for name in _LITERAL_DEVICE:
        importlib.import_module(name).torch = view
    # This module bound CUDA's generator functions by name when it was imported.
    generators = importlib.import_module("megatron.core.tensor_parallel.random")
    generators._get_cuda_rng_state = _get_rng_state
    generators._set_cuda_rng_state = _set_rng_state
    _enabled = True
