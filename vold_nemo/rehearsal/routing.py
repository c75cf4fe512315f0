"""megatron-core's router under fake tensors: where tokens go, and where its weight is.

Which experts a token goes to depends on hidden states, and fake tensors have no values: how many rows a rank sends and
receives, and each expert multiplies, would be unknown.  With *balanced* routing every expert gets the same number of tokens
(to one), on every rank: what load balancing aims at, and the mean that a real run has.  A real run's peaks are higher.
"""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor, nn

from vold_nemo.rehearsal.ledger import Ledger


def install(ledger: Ledger) -> None:
    """Into megatron-core's router, for good."""
    router = importlib.import_module("megatron.core.transformer.moe.router")
    router.topk_routing_with_score_function = _balanced(router.topk_routing_with_score_function)
    router.Router.gating = _moved_first(router.Router.gating, ledger)


def balanced_map(tokens: int, experts: int, chosen: int, device: torch.device) -> Tensor:
    """bool [tokens, experts]: token t goes to the ``chosen`` experts from t * chosen on, round and round.

    Formed from whole numbers on the device, so that whoever keeps values of those knows it as well.
    """
    first = torch.arange(tokens, dtype=torch.int32, device=device) * chosen % experts
    distance = (torch.arange(experts, dtype=torch.int32, device=device) - first.unsqueeze(1)) % experts
    return distance < chosen


def _balanced(route):
    """Probabilities are formed as ever; tokens go by :func:`balanced_map`."""

    @functools.wraps(route)
    def balanced(logits, topk, *arguments, **settings):
        probabilities, chosen = route(logits, topk, *arguments, **settings)
        return probabilities, balanced_map(*chosen.shape, topk, chosen.device)

    return balanced


def _moved_first(gating, ledger: Ledger):
    """A router's weight that was born on the CPU gets ``data`` of the device at its first use, and nobody is told.  A real
    parameter cannot take a fake tensor's data: a new parameter comes instead, and it is a violation.
    """

    @functools.wraps(gating)
    def moved_first(self, input):
        for name, parameter in list(self._parameters.items()):
            if parameter is not None and parameter.device.type == "cpu":
                what = f"Router.{name} {list(parameter.shape)} was born on the cpu"
                ledger.problem("parameter on the CPU", what)
                moved = nn.Parameter(parameter.detach().to(input.device), requires_grad=parameter.requires_grad)
                vars(moved).update({key: value for key, value in vars(parameter).items() if not key.startswith("_")})
                self._parameters[name] = moved
        return gating(self, input)

    return moved_first
