"""Process groups of a world of which one rank is here: torch's ``fake`` backend, with the backend that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

BOTH = "cpu:gloo,cuda:nccl"


@dataclass(frozen=True)
class Group:
    """One group that this rank belongs to.  ``link``: whether its ranks share a node."""

    name: str
    ranks: tuple[int, ...]
    backend: str
    link: str  # node | network

    @property
    def size(self) -> int:
        return len(self.ranks)


class Groups:
    """Every group of rank ``rank`` in a world of ``world``, ``per_node`` ranks to a node."""

    def __init__(self, rank: int, world: int, per_node: int):
        self.rank, self.world, self.per_node = rank, world, per_node
        self._new_group = dist.distributed_c10d.new_group  # before it is replaced
        self.known: dict[str, Group] = {}
        self.made = 0  # of all ranks: each of them takes part in making one
        self.using: dict[str, set[str]] = {}  # group name: devices that met in it

    def join(self, backend: str = BOTH) -> None:
        """The default group."""
        dist.init_process_group("fake", rank=self.rank, world_size=self.world, store=FakeStore())
        self._note(dist.distributed_c10d._get_default_group(), tuple(range(self.world)), backend, "world")

    def go_on(self, rank: int, world: int) -> None:
        """Leave this world for another one."""
        dist.destroy_process_group()
        self.rank, self.world, self.made = rank, world, 0
        self.known.clear()
        self.using.clear()
        self.join()

    def new_group(self, ranks=None, timeout=None, backend=None, pg_options=None, **options):
        """In place of ``torch.distributed.new_group``."""
        made = self._new_group(ranks=ranks, backend="fake", **options)
        self.made += 1
        members = tuple(ranks if ranks is not None else range(self.world))
        if self.rank in members:
            self._note(made, members, backend or self.known_default.backend, options.get("group_desc"))
        return made

    @property
    def known_default(self) -> Group:
        return self.known[dist.distributed_c10d._get_default_group().group_name]

    def _note(self, group: dist.ProcessGroup, ranks: tuple[int, ...], backend: str, name: str | None) -> None:
        nodes = {rank // self.per_node for rank in ranks}
        link = "node" if len(nodes) == 1 else "network"
        self.known[group.group_name] = Group(name or group.group_name, ranks, backend, link)

    def called(self, args: Sequence) -> Group:
        """The group among a collective's arguments."""
        for one in args:
            if isinstance(one, torch.ScriptObject):
                try:
                    return self.known[dist.ProcessGroup.unbox(one).group_name]
                except (RuntimeError, KeyError):
                    continue
        return self.known_default

    def used(self, group: Group, devices: Sequence[str]) -> None:
        self.using.setdefault(group.name, set()).update(devices)
