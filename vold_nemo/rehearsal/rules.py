"""What torch on a GPU, or NCCL, refuses and fake tensors let pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vold_nemo.rehearsal.trees import leaves

aten = torch.ops.aten

# Of these operations: the arguments that must be of one type (matrices of a product by cuBLAS).
_ONE_TYPE = {
    aten.mm.default: (0, 1), aten.addmm.default: (0, 1, 2), aten.mv.default: (0, 1), aten.addmv.default: (0, 1, 2),
    aten.dot.default: (0, 1), aten.addmm_.default: (0, 1, 2), aten.mm.dtype_out: (0, 1), aten.addmm.dtype_out: (1, 2),
}  # fmt: skip
_INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)


def mixed_types(func, args) -> str | None:
    """A matrix product of different types, in words."""
    kinds = [args[place].dtype for place in _ONE_TYPE.get(func, ())]
    return f"{func} of {', '.join(map(str, kinds))}" if len(set(kinds)) > 1 else None


def mixed_devices(func, args) -> str | None:
    """Indices, values or another tensor to compare with on a device where they must not be, in words.

    A tensor on the device may be indexed from the host; one on the host only from the host.
    """
    if func is aten.equal.default:
        places = {one.device.type for one in args[:2]}
    elif func in _INDEXED:
        own, indices = args[0].device.type, [one for one in leaves(args[1]) if isinstance(one, Tensor)]
        places = {own} | {one.device.type for one in indices if one.device.type not in (own, "cpu")}
        if len(args) > 2 and isinstance(args[2], Tensor) and args[2].dim():
            places.add(args[2].device.type)
    else:
        return None
    return f"{func} of {shapes(args)}" if len(places) > 1 else None


def shapes(args) -> str:
    """``cuda[8, 4], cpu[4]``"""
    return ", ".join(f"{one.device.type}{list(one.shape)}" for one in leaves(args) if isinstance(one, Tensor))


def refused(name: str, args: Sequence, size: int) -> str | None:
    """Why NCCL would refuse the collective ``name`` over ``size`` ranks; None where it would not."""
    tensors = [one for one in leaves(args) if isinstance(one, Tensor)]
    if any(not one.is_contiguous() for one in tensors):
        return f"{name} of a tensor that is not contiguous: {shapes(tensors)}"
    pairs = _pairs(name, args)
    for out, given in pairs:
        if out.dtype != given.dtype:
            return f"{name} of {given.dtype} into {out.dtype}"
        larger, smaller = (given, out) if name.startswith(("_reduce_scatter", "reduce_scatter")) else (out, given)
        if larger.numel() != smaller.numel() * size:
            return f"{name} of {shapes([given])} into {shapes([out])} over {size} ranks"
    if name == "alltoall_base":
        for one, split in ((args[0], args[3]), (args[1], args[4])):
            if split and sum(split) != one.shape[0]:
                return f"{name} of {shapes([one])} in parts of {list(split)}"
    return None


def _pairs(name: str, args: Sequence) -> list[tuple[Tensor, Tensor]]:
    """(out, given) of each gather and reduce-scatter of one tensor."""
    if name in ("_allgather_base", "_reduce_scatter_base"):
        return [(args[0], args[1])]
    if name in ("allgather_into_tensor_coalesced", "reduce_scatter_tensor_coalesced"):
        return list(zip(leaves(args[0]), leaves(args[1]), strict=True))
    return []
