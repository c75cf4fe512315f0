"""One scorer for all ranks of a node.

The lowest rank of each node judges for the whole node, with worker processes on the cores of all its ranks; the other ranks
start none.  Answers are on every rank before they are judged (rollouts are gathered over the world) and verdicts come back in
one all-gather, so no socket, no server and no second protocol is needed: workers have one parent, and end with it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch.distributed as dist

from vold_nemo.config import ConfigError, RewardConfig
from vold_nemo.rewards.scoring import Scorer
from vold_nemo.rewards.verdict import Item, Verdict


def _node() -> str:
    """This machine's name and boot: what ranks on one node share, whatever launched them."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.is_file() else ''}"


def _all_gather(mine) -> list:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    found: list = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


Asked = Item | tuple[str, ...] | Callable[[], tuple]


class NodeScorer:
    """Construction, :meth:`try_own` and :meth:`score` are collective over the world (one object all-gather each).

    ``cache``: file of ``reward.judge``'s verdicts.

    Raises:
        ConfigError: ``reward.verifier`` does not exist.
    """

    def __init__(self, config: RewardConfig, cache: Path | None = None):
        places = _all_gather((_node(), sorted(os.sched_getaffinity(0))))
        nodes = list(dict.fromkeys(node for node, _ in places))
        rank = dist.get_rank() if len(places) > 1 else 0
        self.leaders = [next(r for r, (name, _) in enumerate(places) if name == node) for node in nodes]
        # srun may give every rank cores of its own: the workers spread over them all
        cores = {core for node, cores in places if node == places[rank][0] for core in cores}
        self.place = self.leaders.index(rank) if rank in self.leaders else None
        if cache is not None and self.place:  # a file for each node that judges
            cache = cache.with_name(f"{cache.stem}_{self.place}{cache.suffix}")
        self.scorer = Scorer(config, cores, cache)  # starts no process before it is asked

    def prepare(self, names: Iterable[str | None]) -> None:
        """Check the verifiers that will be asked (None: the configured one); start workers now if one of them needs some.

        Raises:
            ConfigError: a verifier that does not exist.
        """
        computing = self.scorer.check(names)
        if computing and self.place is not None:
            self.scorer.start(computing)

    def try_own(self, rows: Sequence[tuple[str | None, str | None]]) -> list[str]:
        """Call the user's own verifiers on a few of the ``rows``, (verifier, key); warnings, the same on every rank.

        Collective where there are any, and only there: every rank has the same rows and configuration.

        Raises:
            ConfigError: one that can give no verdict, on every rank.
        """
        if not any(self.scorer.own(name) for name in dict.fromkeys(name for name, _ in rows)):
            return []
        said: list[str] | Exception = []
        if self.place == 0:
            try:
                said = self.scorer.try_own(rows)
            except Exception as error:
                said = error
        told = said if not isinstance(said, ConfigError) else (said.key, said.value, said.allowed, said.mend)
        told = _all_gather(f"{type(said).__name__}: {said}" if isinstance(told, Exception) else told)[self.leaders[0]]
        if isinstance(said, Exception):
            raise said
        if isinstance(told, tuple):
            raise ConfigError(*told)
        if isinstance(told, str):
            raise RuntimeError(f"rank {self.leaders[0]} could not judge: {told}")
        return told

    def score(self, items: Sequence[Asked]) -> list[Verdict]:
        """Verdicts on ``items``, the same on every rank and given in full on every rank.

        An item may be a function that gives it: it is called where the item is judged, and nowhere else.

        Raises:
            Exception: what the scoring rank raised; RuntimeError on the others, so that none waits for it.
        """
        share: list[Verdict] | Exception = []
        if self.place is not None:
            try:
                mine = items[self.place :: len(self.leaders)]
                share = self.scorer.score([item() if callable(item) else item for item in mine])
            except Exception as error:
                share = error
        told = f"{type(share).__name__}: {share}" if isinstance(share, Exception) else share
        shares = _all_gather(told)
        if isinstance(share, Exception):
            raise share
        verdicts: list[Verdict | None] = [None] * len(items)
        for place, leader in enumerate(self.leaders):
            if isinstance(shares[leader], str):
                raise RuntimeError(f"rank {leader} could not judge: {shares[leader]}")
            verdicts[place :: len(self.leaders)] = shares[leader]
        return verdicts

    def close(self) -> None:
        self.scorer.close()
