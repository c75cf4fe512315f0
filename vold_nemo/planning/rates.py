"""How fast a cluster's GPUs and links are, as ``cluster.*`` says.  Nothing is timed where one of the rates is missing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vold_nemo.config import Config


@dataclass(frozen=True)
class Rates:
    """The rates that a time needs, every one known."""

    bf16_tflops: float
    memory_gbs: float
    link_gbs: float
    network_gbs: float
    host_gbs: float


STORAGE = ("storage_gbs", "storage_total_gbs", "disk_gbs")  # of a start alone
NAMES = tuple(field.name for field in dataclasses.fields(Rates))


def missing(config: Config) -> list[str]:
    return [name for name in NAMES if getattr(config.cluster, name) is None]


def rates(config: Config) -> Rates:
    """
    Raises:
        ValueError: one of them is not given: ask :func:`missing` first.
    """
    if gone := missing(config):
        raise ValueError(f"no time without cluster.{gone[0]}")
    return Rates(**{name: getattr(config.cluster, name) for name in NAMES})


def bandwidth(config: Config, ranks: int) -> float:
    """Bytes a second between ``ranks`` ranks in a row: over a node's links, over the network as soon as they span nodes."""
    found = rates(config)
    across = found.network_gbs if ranks > config.cluster.gpus_per_node else found.link_gbs
    return across * 1e9 * config.plan.network_efficiency
