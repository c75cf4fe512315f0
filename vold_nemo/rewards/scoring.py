"""Rewards of a batch of answers: what is cheap is decided here, the rest in killable processes; order kept."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from vold_nemo.config import RewardConfig
from vold_nemo.rewards.judge import Judge
from vold_nemo.rewards.names import Names
from vold_nemo.rewards.own import PATH
from vold_nemo.rewards.pool import VerifierPool
from vold_nemo.rewards.registry import check, comparisons_in, resolve, settle
from vold_nemo.rewards.trial import EXAMPLES, try_out
from vold_nemo.rewards.verdict import Item, Verdict, unread

MOST_WORKERS = 32  # without reward.workers: a node of 128 cores need not import SymPy 128 times for a step's answers


class Scorer:
    """Judges answers as ``config`` says, with a worker process for each of ``cores`` (None: this process's), up to a limit.

    ``cache``: file in which the verdicts of ``reward.judge`` are kept; None: in memory.
    Close it when done.  The ranks of a node share one: :class:`vold_nemo.rewards.node_scorer.NodeScorer`.
    """

    def __init__(self, config: RewardConfig, cores: Collection[int] | None = None, cache: Path | None = None):
        self.config, self.names = config, Names(config)
        check(self.names.default)  # a wrong name is found before the first rollout
        self._judge: Judge | None = None
        self._cache = cache
        cores = sorted(os.sched_getaffinity(0) if cores is None else cores)
        self.workers = config.workers if config.workers is not None else min(len(cores), MOST_WORKERS)
        self._pool = VerifierPool(
            self.workers, config.seconds, cores, wall=config.wall_seconds, isolation=config.isolation,
            variables=config.environment,
        )  # fmt: skip

    def check(self, names: Iterable[str | None]) -> set[str]:
        """Which of these verifiers (None: the configured one), or of their terms, compute in worker processes.

        Raises:
            ConfigError: a verifier that does not exist.
        """
        found = [check(self.names.full(name)) for name in dict.fromkeys(names)]
        if any(verifier.judged for verifier in found):
            self._ready_judge()
        return set().union(*(verifier.computing for verifier in found))

    def start(self, computing: Collection[str]) -> None:
        """Start the workers for these verifiers in the background, while others are waited for anyway."""
        self._pool.start(computing)

    def score(self, items: Iterable[Item | tuple[str, str, str | None]]) -> list[Verdict]:
        """Verdicts on ``(text, truth, verifier or None)``, in order.  Equal comparisons are computed once.

        A verifier's name is a row's: see :class:`vold_nemo.rewards.names.Names`.

        Raises:
            ConfigError: a verifier that does not exist.
        """
        items = [Item(*item) for item in items]
        verifiers = [resolve(self.names.full(item.verifier)) for item in items]
        readings = [verifier.read(item.text, item.truth) for verifier, item in zip(verifiers, items, strict=True)]
        comparisons = list(dict.fromkeys(comparison for reading in readings for comparison in comparisons_in(reading)))
        answers = dict(zip(comparisons, self._pool.judge(comparisons), strict=True))
        verdicts = [settle(reading, answers.__getitem__) for reading in readings]
        every = self.config.judge.reads == "all"
        open_ = [i for i, verifier in enumerate(verifiers) if verifier.judged and (every or unread(verdicts[i]))]
        if open_:
            asked = [(items[i].question, items[i].truth, items[i].text, verdicts[i]) for i in open_]
            for i, verdict in zip(open_, self._ready_judge().settle(asked), strict=True):
                verdicts[i] = verdict
        return verdicts

    def _ready_judge(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self.config.judge, self._cache, "reward.judge")
        return self._judge

    def own(self, name: str | None) -> set[str]:
        """Paths of the user's code that ``name`` calls."""
        return {one for one in resolve(self.names.full(name)).computing if PATH.fullmatch(one)}

    def try_own(self, rows: Iterable[tuple[str | None, str | None]]) -> list[str]:
        """See :func:`vold_nemo.rewards.trial.try_out`; the rows are (verifier, key)."""
        keys: dict[str, list[str]] = {}
        for name, key in rows:
            for path in self.own(name):
                keys.setdefault(path, [])
                if key is not None and len(keys[path]) < EXAMPLES:
                    keys[path].append(key)
        return [said for path, examples in keys.items() for said in try_out(path, examples, self._pool.judge)]

    def pids(self) -> list[int]:
        """The worker processes that are up."""
        return self._pool.pids()

    def close(self) -> None:
        self._pool.close()


_SCORERS: dict[str, Scorer] = {}  # by their configuration


def score_answers(
    items: Iterable[Item | tuple[str, str, str | None]], config: RewardConfig | None = None
) -> list[Verdict]:
    """:meth:`Scorer.score` on this process's scorer for ``config``; its workers end with the process."""
    config = config if config is not None else RewardConfig()
    name = repr(config)
    if name not in _SCORERS:
        _SCORERS[name] = Scorer(config)
    return _SCORERS[name].score(items)
