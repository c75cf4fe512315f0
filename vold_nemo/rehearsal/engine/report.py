"""Where the kernels of the stand-in report their work: one hook, which whoever keeps the ledger sets."""

from __future__ import annotations

from collections.abc import Callable

import torch

Hook = Callable[[str, float, "torch.dtype | None"], None]


def _nobody(name: str, flops: float, dtype: torch.dtype | None) -> None:
    """Until a ledger listens."""


on_kernel: Hook = _nobody


def kernel(name: str, *, flops: float = 0, dtype: torch.dtype | None = None) -> None:
    """One launch of ``name`` with ``flops`` floating-point operations (a multiply and an add are two) on units of ``dtype``."""
    on_kernel(name, flops, dtype)
