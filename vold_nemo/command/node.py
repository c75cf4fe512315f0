"""What a rank makes sure of in its first second, before torch and NeMo are imported: that its node can take part.

A rank that cannot reach the others would otherwise be found out after ``limits.stuck_minutes``, by all of them waiting.
"""

from __future__ import annotations

import os
import sys

from vold_nemo.config import limits, nccl, network, staged
from vold_nemo.config.launcher import launch, nodes, ranks_on_node


def make_ready(verb: str, training: bool) -> None:
    """Check what was staged for ``verb``, and check and set what ranks of one world share.

    With ``training``, which makes process groups: the network variables are right and name what this node has, gloo is given
    NCCL's interface, and limits are raised as far as they may be.

    Raises:
        ExceptionGroup: of ConfigError (every rank's, the variables themselves) or NodeError (this node's).
    """
    if verb in staged.VERBS:
        staged.copies()
    place = launch()
    if not place.by_launcher or not training:
        return
    errors = list(network.findings(os.environ)) or list(network.here(os.environ, place, nodes()))
    if errors:
        raise ExceptionGroup("network", errors)
    if gloo := network.of_gloo(os.environ):
        os.environ[network.GLOO] = gloo
    short = limits.raise_limits(place.world, ranks_on_node())
    if place.local_rank == 0:
        _warn(*limits.warnings(short, bool(network.adapters()) and os.environ.get("NCCL_IB_DISABLE", "0") == "0"))
    if place.rank == 0:
        for name in sorted(os.environ):
            other = nccl.meant(name)
            if other or nccl.is_unknown(name):
                _warn(f"{name}: NCCL up to 2.30 reads no such variable" + (f"; {other}?" if other else ""))


def _warn(*said: str) -> None:
    for line in said:
        print(f"warning: {line}", file=sys.stderr, flush=True)
