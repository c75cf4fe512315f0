"""Everything that a rehearsal puts in the place of others' functions, in a process of its own; nothing is put back.

torch's CPU build has no CUDA runtime, so what asks for it in Python answers here (:func:`play_gpu`), as do choices that torch
makes in C++ by asking a real device.  :func:`play_world` answers for ranks that are not there.  Of the project's own code what
locks pages of host memory is replaced, and nothing else.  What stands in for Transformer Engine's extension has a folder of its
own (``engine/``).
"""

from __future__ import annotations

import contextlib
import queue
import types
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.checkpoint.storage import WriteResult
from torch.utils._python_dispatch import _disable_current_modes

from vold_nemo.megatron import device as devices
from vold_nemo.rehearsal import routing
from vold_nemo.rehearsal.ledger import Ledger
from vold_nemo.rehearsal.trees import mapped
from vold_nemo.rehearsal.watch import Watch


@dataclass(frozen=True)
class GPU:
    """The device that is played.  ``memory``: bytes."""

    name: str
    capability: tuple[int, int]
    memory: int
    cuda: str = "13.0"


class _Stream:
    """A stream or event: calls return at once, since nothing runs."""

    cuda_stream = 0
    device = torch.device("cuda", 0)

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        pass

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self if name == "record_event" else True if name == "query" else None


def play_gpu(gpu: GPU, ledger: Ledger, watch: Watch) -> None:
    """First part.  Before megatron-core or Transformer Engine is imported, which look once and remember."""
    _runtime(gpu, ledger)
    _tensors(ledger, watch)
    play_modules(ledger)
    _kernels()


def _runtime(gpu: GPU, ledger: Ledger) -> None:
    """``torch.cuda``: one device, whose memory is what the ledger counts."""
    cuda, one = torch.cuda, torch.device("cuda", 0)
    properties = types.SimpleNamespace(
        name=gpu.name, major=gpu.capability[0], minor=gpu.capability[1], total_memory=gpu.memory, multi_processor_count=132,
        warp_size=32,
    )  # fmt: skip

    def synchronize(device=None) -> None:
        ledger.sync("synchronize")

    generators = (torch.Generator(),)
    answers = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "init": lambda: None,
        "is_initialized": lambda: True, "set_device": lambda device: None, "synchronize": synchronize,
        "empty_cache": lambda: None, "ipc_collect": lambda: None, "_lazy_init": lambda: None,
        "get_device_capability": lambda device=None: gpu.capability, "get_device_name": lambda device=None: gpu.name,
        "get_device_properties": lambda device=None: properties, "is_bf16_supported": lambda *a, **k: True,
        "mem_get_info": lambda device=None: (gpu.memory - ledger.device.live, gpu.memory),
        "memory_allocated": lambda device=None: ledger.device.live,
        "memory_reserved": lambda device=None: ledger.device.live,
        "max_memory_allocated": lambda device=None: max((peak.size for peak in ledger.device.peaks.values()), default=0),
        "reset_peak_memory_stats": lambda device=None: None, "is_current_stream_capturing": lambda: False,
        "default_generators": generators, "Stream": _Stream, "Event": _Stream,
        "current_stream": lambda device=None: _Stream(), "default_stream": lambda device=None: _Stream(),
        "stream": lambda stream: contextlib.nullcontext(), "device": lambda device: contextlib.nullcontext(),
        "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: generators[0].get_state(),
        "set_rng_state": lambda state, device=None: None, "_lazy_call": lambda call, **options: call(),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    cuda.random._lazy_init = lambda: None
    cuda.nvtx.range_push, cuda.nvtx.range_pop = (lambda name: 0), (lambda: 0)  # a CPU build has none
    cuda.random._lazy_call = lambda call, **options: call()
    cuda.random.default_generators = generators
    for name, answer in {
        "_cuda_getDevice": lambda: 0, "_cuda_setDevice": lambda device: None, "_cuda_getDeviceCount": lambda: 1,
        "_cuda_isInBadFork": lambda: False, "_cuda_init": lambda: None,
    }.items():  # fmt: skip
        setattr(torch._C, name, answer)
    torch.version.cuda = gpu.cuda
    devices.host_memory = _locked
    # ``isinstance(x, torch.cuda.FloatTensor)`` and ``torch.cuda.LongTensor([1, 2])``, as megatron-core writes them.
    for name, dtype in {
        "FloatTensor": torch.float32, "DoubleTensor": torch.float64, "LongTensor": torch.int64, "IntTensor": torch.int32,
        "ByteTensor": torch.uint8, "HalfTensor": torch.float16, "BFloat16Tensor": torch.bfloat16,
    }.items():  # fmt: skip
        setattr(cuda, name, _typed(name, dtype, one))


def _locked(size: int, device: torch.device):
    """As ``megatron/device.py: host_memory``."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True), lambda: None


def _typed(name: str, kind: torch.dtype, device: torch.device) -> type:
    class Kind(type):
        def __instancecheck__(cls, one) -> bool:
            return isinstance(one, Tensor) and one.is_cuda and one.dtype == kind

        def __call__(cls, given=0):
            if isinstance(given, list | tuple):
                return torch.tensor(given, dtype=kind, device=device)
            return torch.empty(given, dtype=kind, device=device)

    return Kind(name, (), {})


def _tensors(ledger: Ledger, watch: Watch) -> None:
    """Methods of tensors and modules that would ask the CUDA runtime, or that cannot mix real and fake tensors."""
    # A tensor that is made on CUDA from numbers is made on the CPU and copied, where the watch sees it.
    torch._C._set_only_lift_cpu_tensors(True)
    Tensor.cuda = lambda self, device=None, non_blocking=False, **options: self.to("cuda", non_blocking=non_blocking)
    Tensor.pin_memory = lambda self, *args, **options: self
    Tensor.is_pinned = lambda self, *args, **options: True
    Tensor.record_stream = lambda self, stream: None
    whole = Tensor.type

    def type_(self, dtype=None, *args, **options):
        if dtype is None and self.is_cuda:
            short = {torch.float32: "Float", torch.bfloat16: "BFloat16", torch.float16: "Half"}[self.dtype]
            return f"torch.cuda.{short}Tensor"
        return whole(self, dtype, *args, **options)

    Tensor.type = type_
    # A fake one asks for each element; a real one is copied to the host once.
    FakeTensor.tolist = lambda self: self.cpu().tolist()
    made = torch.tensor

    def tensor(data, **options):
        """From a list of tensors torch reads each in C++, past the watch (megatron-core's own gradient norm does so); pages
        of what it makes cannot be locked."""
        return made(read(data), **{key: value for key, value in options.items() if key != "pin_memory"})

    def read(data):
        if isinstance(data, list | tuple):
            return [one.item() if isinstance(one, FakeTensor) and not one.dim() else read(one) for one in data]
        return data

    torch.tensor = tensor
    resize = torch.UntypedStorage.resize_

    def resize_(self, size):
        done = resize(self, size)
        watch.resized(self)
        return done

    torch.UntypedStorage.resize_ = resize_


def play_modules(ledger: Ledger) -> None:
    """Modules of fake parameters, on a GPU or not."""

    def apply(module, function, recurse=True):
        """``Module._apply`` by new parameters: the data of a real one cannot be exchanged for a fake."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is None:
                    continue
                with torch.no_grad():
                    moved = function(parameter)
                if moved is parameter or (moved.device, moved.dtype) == (parameter.device, parameter.dtype):
                    continue
                if moved.device.type != parameter.device.type:
                    what = f"{type(part).__name__}.{name} {list(parameter.shape)} was born on the {parameter.device.type}"
                    ledger.problem("parameter on the CPU", what)
                made = nn.Parameter(moved, requires_grad=parameter.requires_grad)
                made.__dict__.update({key: value for key, value in vars(parameter).items() if key != "_value"})
                part._parameters[name] = made
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = function(buffer)
        return module

    nn.Module._apply = apply


def _kernels() -> None:
    """The kernels that torch takes on a GPU: it chooses in C++, by asking the device."""
    attention, norm = F.scaled_dot_product_attention, F.rms_norm

    def flash(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if not query.is_cuda or attn_mask is not None:
            return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]

    def fused(input, normalized_shape, weight=None, eps=None):
        if not input.is_cuda:
            return norm(input, normalized_shape, weight, eps)
        return _FusedNorm.apply(input, weight)

    F.scaled_dot_product_attention, F.rms_norm = flash, fused
    with contextlib.suppress(RuntimeError):  # this process has played a GPU before
        _CUDA_ALONE.impl("addmm.dtype_out", _accumulated)


_CUDA_ALONE = torch.library.Library("aten", "IMPL", "Meta")  # what it holds ends with it


def _accumulated(self, mat1, mat2, out_dtype, *, beta=1, alpha=1, out):
    """``Blas.cpp: _addmm_dtype_out_cuda``, which has no fake of its own: its checks, and a product into ``out``."""
    if out.dtype != out_dtype or self.dtype not in (out_dtype, mat1.dtype) or out_dtype not in (torch.float32, mat1.dtype):
        raise RuntimeError(f"addmm of {mat1.dtype} and {mat2.dtype} to {self.dtype} as {out_dtype} into {out.dtype}")
    if (mat1.shape[0], mat2.shape[1]) != tuple(out.shape) or mat1.shape[1] != mat2.shape[0]:
        raise RuntimeError(f"addmm of {list(mat1.shape)} and {list(mat2.shape)} into {list(out.shape)}")
    return out


class _FusedNorm(torch.autograd.Function):
    """What ``aten._fused_rms_norm`` keeps on CUDA: its input and 1/rms in fp32.  A build without it takes it apart instead."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight, torch.empty(input.shape[:-1], dtype=torch.float32, device=input.device))
        return torch.empty_like(input)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        input, weight, _ = ctx.saved_tensors
        return torch.empty_like(input), None if weight is None else torch.empty_like(weight)


def play_fusions(ledger: Ledger, watch: Watch) -> None:
    """megatron-core's functions that torch.compile makes one kernel of: it writes what they return and nothing else."""
    from megatron.core.fusions import fused_bias_swiglu as fused

    def one_kernel(name: str, function):
        def launch(*given):
            with _disable_current_modes(), watch.fake:
                made = function(*given)
            ledger.kernel(f"compiled {name}", dtype=given[0].dtype)
            return mapped(lambda one: torch.empty_like(one) if isinstance(one, Tensor) else one, made)

        return launch

    for name in ("swiglu", "swiglu_back", "weighted_swiglu", "weighted_swiglu_back"):
        setattr(fused, name, one_kernel(name, getattr(fused, name)))


def play_world(ledger: Ledger, watch: Watch) -> None:
    """Groups get torch's ``fake`` backend; objects go nowhere: all ranks would have said what this one says."""
    groups = watch.groups
    dist.new_group = dist.distributed_c10d.new_group = groups.new_group

    def note(operation: str, group) -> None:
        found = groups.known.get(group.group_name) if group is not None else groups.known_default
        if found is not None:
            groups.used(found, ["cuda"] if "gloo" not in found.backend else ["cpu"])
            ledger.objects[ledger.phase, operation, found.name, found.size] += 1

    def all_gather_object(object_list, obj, group=None) -> None:
        note("all_gather_object", group)
        object_list[:] = [obj] * len(object_list)

    def gather_object(obj, object_gather_list=None, dst=None, group=None, group_dst=None) -> None:
        note("gather_object", group)
        if object_gather_list is not None:
            object_gather_list[:] = [obj] * len(object_gather_list)

    def broadcast_object_list(object_list, *args, group=None, **options) -> None:
        note("broadcast_object_list", group)

    # What other ranks hold is not known here; that all of it together is whole is for a real run to check.
    from megatron.core.dist_checkpointing import state_dict_utils

    state_dict_utils.validate_sharding_integrity = lambda *args, **options: None
    _play_files(note)
    routing.install(ledger)
    play_fusions(ledger, watch)

    for name, stand_in in {
        "all_gather_object": all_gather_object, "gather_object": gather_object,
        "broadcast_object_list": broadcast_object_list,
    }.items():  # fmt: skip
        setattr(dist, name, stand_in)
        setattr(dist.distributed_c10d, name, stand_in)


def _play_files(note) -> None:
    """Checkpoints are planned as this rank's alone, and come as far as the host, one tensor after the other."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import default_planner, filesystem

    from vold_nemo.checkpoint.shard_files import Planner

    save = dcp.save

    def save_alone(state, *, process_group=None, **options):
        for operation in ("gather_object", "scatter_object_list", "gather_object", "broadcast_object_list"):
            note(operation, process_group)
        return save(state, no_dist=True, **options)

    def write(file_queue, result_queue, planner, **options) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                _, name, items = file_queue.get_nowait()
                result_queue.put([written(super(Planner, planner).resolve_data(item), item, name) for item in items])

    def written(data, item, name: str) -> WriteResult:
        size = data.cpu().nbytes if isinstance(data, Tensor) else len(data.getbuffer())
        return WriteResult(item.index, size, filesystem._StorageInfo(name, 0, size))

    dcp.save, filesystem._write_files_from_queue = save_alone, write
    default_planner._validate_global_plan = lambda *args, **options: []  # errors: of what other ranks write nothing is known
