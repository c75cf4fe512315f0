"""Rewards of a batch of answers: what is cheap is decided here, the rest in killable processes; order kept."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from vold_nemo.config import RewardConfig
from vold_nemo.rewards.pool import VerifierPool
from vold_nemo.rewards.registry import check, comparisons_in, resolve, settle
from vold_nemo.rewards.verdict import Item, Verdict

MOST_WORKERS = 32  # without reward.workers: a node of 128 cores need not import SymPy 128 times for a step's answers


class Scorer:
    """Judges answers as ``config`` says, with a worker process for each of ``cores`` (None: this process's), up to a limit.

    Close it when done.  The ranks of a node share one: :class:`vold_nemo.rewards.node_scorer.NodeScorer`.
    """

    def __init__(self, config: RewardConfig, cores: Collection[int] | None = None):
        self.config = config
        check(config.verifier)  # a wrong name is found before the first rollout
        cores = sorted(os.sched_getaffinity(0) if cores is None else cores)
        self.workers = config.workers if config.workers is not None else min(len(cores), MOST_WORKERS)
        self._pool = VerifierPool(self.workers, config.seconds, cores)

    def check(self, names: Iterable[str | None]) -> set[str]:
        """Which of these verifiers (None: the configured one), or of their terms, compute in worker processes.

        Raises:
            ConfigError: a verifier that does not exist.
        """
        return set().union(*(check(name or self.config.verifier).computing for name in dict.fromkeys(names)))

    def start(self, computing: Collection[str]) -> None:
        """Start the workers for these verifiers in the background, while others are waited for anyway."""
        self._pool.start(computing)

    def score(self, items: Iterable[Item | tuple[str, str, str | None]]) -> list[Verdict]:
        """Verdicts on ``(text, truth, verifier or None)``, in order.  Equal comparisons are computed once.

        Raises:
            ConfigError: a verifier that does not exist.
        """
        readings = [
            resolve(item.verifier or self.config.verifier).read(item.text, item.truth)
            for item in (Item(*item) for item in items)
        ]
        comparisons = list(dict.fromkeys(comparison for reading in readings for comparison in comparisons_in(reading)))
        answers = dict(zip(comparisons, self._pool.judge(comparisons), strict=True))
        return [settle(reading, answers.__getitem__) for reading in readings]

    def pids(self) -> list[int]:
        """The worker processes that are up."""
        return self._pool.pids()

    def close(self) -> None:
        self._pool.close()


@functools.cache
def _scorer(verifier: str, seconds: float, workers: int | None) -> Scorer:
    return Scorer(RewardConfig(verifier, seconds, workers))


def score_answers(
    items: Iterable[Item | tuple[str, str, str | None]], config: RewardConfig | None = None
) -> list[Verdict]:
    """:meth:`Scorer.score` on this process's scorer for ``config``; its workers end with the process."""
    config = config if config is not None else RewardConfig()
    return _scorer(config.verifier, config.seconds, config.workers).score(items)


def diagnose(verdicts: Sequence[Verdict], verifiers: Sequence[str]) -> dict[str, Any]:
    """Metrics of a step: share of answers that could be read, time-outs, errors and crashes, answers per verifier."""
    return {
        "reward": {
            "parsed_rate": sum(verdict.extracted is not None for verdict in verdicts) / max(1, len(verdicts)),
            "timeouts": sum(verdict.trouble == "time-out" for verdict in verdicts),
            "errors": sum(verdict.trouble == "error" for verdict in verdicts),
            "answers": dict(sorted(Counter(verifiers).items())),
        }
    }
