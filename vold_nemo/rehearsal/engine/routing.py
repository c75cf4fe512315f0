"""Balanced routing of tokens to experts, of which a rehearsal knows the numbers.

Which experts a token goes to depends on hidden states, and fake tensors have no values: how many rows a rank sends and
receives, and each expert multiplies, would be unknown.  With balanced routing every expert gets the same number of tokens
(to one), on every rank: what load balancing aims at, and the mean that a real run has.  Its peaks are higher.
"""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor


def balanced_map(tokens: int, experts: int, chosen: int, device: torch.device) -> Tensor:
    """bool [tokens, experts]: token t goes to the ``chosen`` experts from t * chosen on, round and round.

    Formed from integers on the device, so that whoever keeps real values for small integers knows it as well.
    """
    first = torch.arange(tokens, dtype=torch.int32, device=device) * chosen % experts
    distance = (torch.arange(experts, dtype=torch.int32, device=device) - first.unsqueeze(1)) % experts
    return distance < chosen


def balance() -> None:
    """From now on megatron-core's router forms its probabilities as ever, and sends tokens by :func:`balanced_map`."""
    router = importlib.import_module("megatron.core.transformer.moe.router")
    route = router.topk_routing_with_score_function
    if hasattr(route, "__wrapped__"):
        return

    @functools.wraps(route)
    def balanced(logits, topk, *arguments, **settings):
        probabilities, chosen = route(logits, topk, *arguments, **settings)
        return probabilities, balanced_map(*chosen.shape, topk, chosen.device)

    router.topk_routing_with_score_function = balanced
