"""Which device a process computes on."""

from __future__ import annotations

import torch

from vold_nemo.config import ConfigError


def pick_device(device: str, local_rank: int) -> torch.device:
    """``auto | cpu | cuda`` -> the device of the node's ``local_rank``-th process; one visible GPU is everybody's."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError("device", device, "auto | cpu | cuda", "set device to one of these")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", device, "auto | cpu", "no CUDA device is visible: set device=cpu, or find one")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def pick_training_device(device: str, local_rank: int) -> torch.device:
    """As :func:`pick_device`; megatron-core computes on a GPU wherever it sees one."""
    where = pick_device(device, local_rank)
    if where.type == "cpu" and torch.cuda.is_available():
        mend = "megatron-core uses a CUDA device that it sees: hide it with CUDA_VISIBLE_DEVICES= first"
        raise ConfigError("device", device, "auto | cuda", mend)
    return where
