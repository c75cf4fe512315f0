"""megatron-core's router under fake tensors: it moves its weight to the device by itself, at its first use.

A model that Transformer Engine holds in FP8 is built on the device and never moved as a whole
(:func:`vold_nemo.megatron.build.build_model`); the router's weight alone is born on the CPU, and ``Router.gating`` exchanges
its ``data`` for a tensor of the device.  A real parameter cannot take a fake tensor's data: here a new parameter comes.
"""

from __future__ import annotations

import functools
import importlib

from torch import nn


def install() -> None:
    router = importlib.import_module("megatron.core.transformer.moe.router").Router
    gating = router.gating

    @functools.wraps(gating)
    def moved_first(self, input):
        for name, parameter in list(self._parameters.items()):
            if parameter is not None and parameter.device.type == "cpu":
                moved = nn.Parameter(parameter.detach().to(input.device), requires_grad=parameter.requires_grad)
                vars(moved).update({key: value for key, value in vars(parameter).items() if not key.startswith("_")})
                self._parameters[name] = moved
        return gating(self, input)

    router.gating = moved_first
