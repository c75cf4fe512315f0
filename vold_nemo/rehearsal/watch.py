"""Sees every operation that torch dispatches, makes those on CUDA fake, and writes down what they would have asked of a GPU.

Tensors on the CPU stay real, but for pinned memory, for large ones, and for copies of what no host has values of.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.distributed._tools.fake_collectives import FakeWork
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

from vold_nemo.rehearsal import rules, values
from vold_nemo.rehearsal.groups import Groups
from vold_nemo.rehearsal.ledger import Collective, Ledger, place
from vold_nemo.rehearsal.trees import leaves, mapped

aten = torch.ops.aten

HOST_REAL = 1 << 22  # elements of a tensor of real numbers on the host that is a real one; larger ones are fake
_FACTORIES = (aten.empty.memory_format, aten.zeros.default, aten.ones.default, aten.full.default, aten.empty_strided.default)
_NO_LAUNCH = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "detach", "alias", "split",
              "as_strided", "unsqueeze", "squeeze", "empty", "empty_like", "new_empty", "empty_strided", "unbind", "chunk",
              "split_with_sizes", "narrow", "set_", "new_empty_strided", "view_as", "reshape", "device"}  # fmt: skip
_IN_PLACE = (aten.copy_.default, aten.add_.Tensor, aten.mul_.Tensor, aten.mul_.Scalar, aten.div_.Tensor, aten.sub_.Tensor)
_MIXED = ("two different devices", "found at least two devices", "to be in the same device", "same device", "Mismatching")
_CAUSAL = {  # where the flag stands
    aten._scaled_dot_product_flash_attention.default: 4, aten._scaled_dot_product_flash_attention_backward.default: 11,
}  # fmt: skip
_BLOCKING = {aten.nonzero.default: "nonzero", aten.masked_select.default: "masked_select"}


class Watch(TorchDispatchMode):
    """See the module.

    Args:
        groups: of the world that is rehearsed.
        host_real: see :data:`HOST_REAL`.
    """

    def __init__(self, ledger: Ledger, groups: Groups, host_real: int = HOST_REAL):
        super().__init__()
        self.ledger, self.groups, self.host_real = ledger, groups, host_real
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(kind is not Tensor and not issubclass(kind, FakeTensor | torch.nn.Parameter) for kind in types):
            return NotImplemented  # a tensor that is made of others (FP8) takes itself apart, and its parts come here
        if func.namespace == "c10d":
            return self._collective(func, args)
        if func in _IN_PLACE and self._same_in_place(args):
            self.ledger.launches[self.ledger.phase] += 1
            return args[0]
        flat = leaves((args, kwargs))
        fakes = [one for one in flat if isinstance(one, FakeTensor)]
        device = kwargs.get("device")
        to_cuda = device is not None and torch.device(device).type == "cuda"
        pinned = bool(kwargs.get("pin_memory"))
        if not fakes and not to_cuda and not pinned and not _large(func, args, kwargs, self.host_real):
            return func(*args, **kwargs)
        if pinned:
            kwargs = {**kwargs, "pin_memory": False}
        on_cuda = to_cuda or any(one.device.type == "cuda" for one in fakes)
        name = func._overloadpacket.__name__
        if on_cuda and name not in _NO_LAUNCH:
            self.ledger.launches[self.ledger.phase] += 1
        if where := rules.mixed_devices(func, args):
            self._refuse("mixed devices", where)
        if func is aten._local_scalar_dense.default:
            if on_cuda:
                self.ledger.sync("item")
            return values.on_host(args[0]).item()
        if func is aten.equal.default:
            if on_cuda:
                self.ledger.sync("equal")
            both = [values.known(one) for one in args[:2]]
            return all(one is None for one in both) or (None not in both and torch.equal(*both))
        to_host = func is aten._to_copy.default and device is not None and torch.device(device).type == "cpu"
        if to_host and fakes[0].is_cuda:
            self._say_copied("device to host", fakes[0], waits=not kwargs.get("non_blocking"))
            if fakes[0].numel() <= self.host_real:
                return values.on_host(fakes[0], kwargs.get("dtype"))
        args, kwargs = mapped(self._faked, args), mapped(self._faked, kwargs)
        if to_cuda and func is aten._to_copy.default and not args[0].is_cuda:
            self._say_copied("host to device", args[0], waits=not kwargs.get("non_blocking"))
        if func is aten.copy_.default and args[0].device.type != args[1].device.type:
            direction = "host to device" if args[0].is_cuda else "device to host"
            self._say_copied(direction, args[1], waits=not (len(args) > 2 and args[2]))
        out = self._run(func, args, kwargs, on_cuda)
        if failed := values.follow(func, args, kwargs, out):
            self.ledger.unknown[failed] += 1
        for one in leaves(out):
            if isinstance(one, FakeTensor):
                self._track(one)
        self._count(func, args, kwargs, out)
        return out

    @staticmethod
    def _same_in_place(args) -> bool:
        """Whether an operation writes into its first tensor, on the device, from others just like it, all without values.

        Nothing then changes but what nobody knows: the long way round through a fake mode, a third of a sync, is saved.
        """
        first = args[0]
        for one in args:
            if isinstance(one, Tensor):
                if not isinstance(one, FakeTensor) or one.shape != first.shape or not one.is_cuda:
                    return False
                if values.known(one) is not None:
                    return False
        return True

    def _run(self, func, args, kwargs, on_cuda: bool):
        if types := rules.mixed_types(func, args):
            self._refuse("mixed types", types)
        masks = [one for one in args[1] or () if _is_mask(one)] if func in (aten.index.Tensor, aten.index_put_.default) else []
        if func is aten.nonzero.default or func is aten.masked_select.default or (masks and func is aten.index.Tensor):
            if on_cuda:
                self.ledger.sync(_BLOCKING.get(func, "mask as index"))
            return self._as_many_as_known(func, args)
        try:
            with self.fake:
                return func(*args, **kwargs)
        except DynamicOutputShapeException:  # its length hangs on values: a GPU waits for them, too
            if on_cuda:
                self.ledger.sync(func._overloadpacket.__name__)
            given = [values.known(one) for one in args if isinstance(one, Tensor)]
            if any(one is None for one in given):
                raise
            found = func(*[values.known(one) if isinstance(one, Tensor) else one for one in args], **kwargs)
            return mapped(lambda one: self._like(one, args[0].device) if isinstance(one, Tensor) else one, found)
        except RuntimeError as error:
            if any(words in str(error) for words in _MIXED):
                self.ledger.problem("mixed devices", f"{func} of {rules.shapes(args)}")
            raise

    def _refuse(self, kind: str, what: str) -> None:
        """Say so, and end as a GPU would end it."""
        self.ledger.problem(kind, what)
        raise RuntimeError(f"{kind}: {what}")

    def _as_many_as_known(self, func, args):
        """Operations whose result is as long as their input's values say."""
        if func is aten.nonzero.default:
            where = self._value(args[0], torch.zeros(1, dtype=torch.bool)).nonzero()
            return self._like(where, args[0].device)
        if func is aten.masked_select.default:
            mask = self._value(args[1], torch.zeros(1, dtype=torch.bool))
            mask = mask.expand(torch.broadcast_shapes(mask.shape, args[0].shape))
            found = self._empty((int(mask.sum()),), args[0].dtype, args[0].device)
            if (value := values.known(args[0])) is not None:
                values.remember(found, value.masked_select(mask))
            return found
        indices: list[Tensor | None] = []
        for one in args[1]:
            if _is_mask(one):
                indices += [self._like(column, one.device) for column in self._value(one, None).nonzero().unbind(1)]
            else:
                indices.append(one)
        with self.fake:
            return aten.index.Tensor(args[0], indices)

    def _value(self, tensor: Tensor, instead: Tensor | None) -> Tensor:
        value = values.known(tensor)
        if value is not None:
            return value
        self.ledger.unknown[f"which of {tuple(tensor.shape)} are true at {place(4)}"] += 1
        return torch.ones(tensor.shape, dtype=torch.bool) if instead is None else instead.expand(tensor.shape)

    def _like(self, value: Tensor, device) -> Tensor:
        made = self._empty(value.shape, value.dtype, device)
        values.remember(made, value)
        return made

    def _empty(self, shape, dtype, device) -> Tensor:
        with self.fake:
            return torch.empty(shape, dtype=dtype, device=device)

    def _faked(self, one: Any) -> Any:
        if not isinstance(one, Tensor) or isinstance(one, FakeTensor):
            return one
        made = self.fake.from_tensor(one)
        if values.worth_keeping(one):
            values.remember(made, one.detach())
        return made

    # -- what is written down ------------------------------------------------------------------------------------------

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        memory = self.ledger.device if tensor.is_cuda else self.ledger.host
        key = storage._cdata
        if key in memory.storages:
            return

        def gone(_, key=key, memory=memory):
            memory.freed(key, self.ledger.phase)

        memory.made(key, storage.nbytes(), self.ledger.phase)
        memory.storages[key].reference = weakref.ref(storage, gone)

    def on_host(self, shape, dtype: torch.dtype) -> Tensor:
        """A tensor of the host without values, which takes no memory here."""
        with _disable_current_modes(), self.fake:
            made = torch.empty(tuple(shape), dtype=dtype)
        self._track(made)
        return made

    def resized(self, storage: torch.UntypedStorage) -> None:
        """``storage.resize_`` was called."""
        for memory in (self.ledger.device, self.ledger.host):
            if storage._cdata in memory.storages:
                memory.resized(storage._cdata, storage.nbytes(), self.ledger.phase)

    def _say_copied(self, direction: str, tensor: Tensor, *, waits: bool) -> None:
        self.ledger.copied(direction, tensor.numel() * tensor.element_size())
        if waits:
            self.ledger.sync(f"copy {direction}")

    def _count(self, func, args, kwargs, out) -> None:
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            return
        kinds = (one.dtype for one in leaves(args) if isinstance(one, Tensor) and one.dtype.is_floating_point)
        kind = next(kinds, torch.int64)
        if func is aten.addmm.dtype_out:  # the formula knows no type of the result
            args, kwargs = args[:3], {}
        flops = formula(*args, **kwargs, out_val=out)
        if (place_of_flag := _CAUSAL.get(func)) is not None and args[place_of_flag]:
            flops //= 2  # half of the pairs; the formula counts all of them
        self.ledger.flops[self.ledger.phase, str(kind).removeprefix("torch."), func._overloadpacket.__name__] += flops

    # -- collectives ---------------------------------------------------------------------------------------------------

    def _collective(self, func, args):
        name = func._overloadpacket.__name__.rstrip("_")
        tensors = [one for one in leaves(args) if isinstance(one, Tensor)]
        group = self.groups.called(args)
        devices = sorted({one.device.type for one in tensors})
        if len(devices) > 1:
            self.ledger.problem("mixed devices", f"{name} of {rules.shapes(tensors)} over {group.name}")
        elif devices == ["cuda"] and (why := rules.refused(name, args, group.size)):
            self.ledger.problem("wrong collective", f"{why} ({group.name})")
        for device in devices:
            wanted = "nccl" if device == "cuda" else "gloo"
            if wanted not in group.backend:
                what = f"{name} of a {device} tensor over {group.name}, which has {group.backend}"
                self.ledger.problem("wrong backend", what)
        self.ledger.launches[self.ledger.phase] += devices == ["cuda"]
        payload = self._payload(name, args)
        call = Collective(self.ledger.phase, name, group.name, group.size, group.link, "+".join(devices) or "none")
        self.ledger.collective(call, sum(one.numel() * one.element_size() for one in payload))
        self.groups.used(group, devices)
        _spread(name, args)
        work = FakeWork().boxed()
        returned = len(func._schema.returns)
        return work if returned == 1 else (args[0], work)

    @staticmethod
    def _payload(name: str, args) -> list[Tensor]:
        """The tensors whose bytes travel: for a gather what comes together, else what is given."""
        first = [one for one in leaves(args[0]) if isinstance(one, Tensor)] if args else []
        rest = [one for one in leaves(args[1:2]) if isinstance(one, Tensor)]
        return max((first, rest), key=lambda some: sum(one.numel() * one.element_size() for one in some))


def _spread(name: str, args) -> None:
    """Values after a collective, as if every rank had brought the same; sums keep one rank's."""
    if name in ("allreduce", "broadcast", "barrier", "send", "isend"):
        return
    out, given = (leaves(args[i : i + 1]) if len(args) > i else [] for i in (0, 1))
    given = [one for one in given if isinstance(one, Tensor)]
    for one in (one for one in out if isinstance(one, FakeTensor)):
        value = values.known(given[0]) if len(given) == 1 else None
        values.forget(one)
        if value is None or not values.worth_keeping(one):
            continue
        if name == "alltoall_base" and one.shape == value.shape:
            values.remember(one, value.clone())
        elif name == "_allgather_base" and value.numel() and one.numel() % value.numel() == 0:
            values.remember(one, value.reshape(-1).repeat(one.numel() // value.numel()).view(one.shape))


def _large(func, args, kwargs, limit: int) -> bool:
    """Whether a factory asks for more host memory than a rehearsal has: buffers for the optimizer's state, say."""
    if func not in _FACTORIES or torch.device(kwargs.get("device") or "cpu").type == "meta":
        return False
    kind = kwargs.get("dtype") or torch.get_default_dtype()
    return kind.is_floating_point and math.prod(args[0]) > limit


def _is_mask(one: Any) -> bool:
    return isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8)
