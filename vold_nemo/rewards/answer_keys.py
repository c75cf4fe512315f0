"""Whether an answer can be judged at all: a key that no response could meet would teach that everything is wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable

from vold_nemo.config import ConfigError, RewardConfig
from vold_nemo.rewards.names import FOREIGN, Names
from vold_nemo.rewards.registry import Sum, check, resolve
from vold_nemo.rewards.verdict import Verdict


def refusal(reward: RewardConfig | str, *, parse: bool = True) -> Callable[[str, str | None], str | None]:
    """A function of (answer, verifier or None for the configured one): why the answer cannot be a key, or None if it can.

    ``reward``: the configuration, or ``reward.verifier`` alone.  A row whose verifier is code that the configuration does not
    name (:mod:`vold_nemo.rewards.names`) is refused, and the code neither looked for nor run.

    The key itself, boxed, is read as a response: a verifier that calls it wrong cannot parse it (``choice`` with a number,
    unbalanced braces).  What a verifier leaves to a worker process is taken on trust: this reads and computes nothing.
    Without ``parse`` only a row's verifier that does not exist is a reason: questions that are judged and not learned from.
    """

    names = Names(reward if isinstance(reward, RewardConfig) else RewardConfig(reward))

    @functools.lru_cache(maxsize=4096)
    def refuse(answer: str, verifier: str | None) -> str | None:
        name = verifier or names.default
        try:
            name = names.full(verifier)
            check(name)
        except ConfigError as error:
            if verifier is None:
                raise  # the configuration is wrong, not the row
            if error.key == FOREIGN:
                return f"verifier {verifier[:60]!r} is code that the configuration does not name (reward.verifiers)"
            return f"verifier {verifier[:60]!r} does not exist"
        if not parse or resolve(name).judged:
            return None
        reading = resolve(name).read(f"\\boxed{{{answer}}}", answer)
        parts = [part for _, _, part in reading.terms] if isinstance(reading, Sum) else [reading]
        if any(isinstance(part, Verdict) and part.reward < 1 for part in parts):
            return f"verifier {(verifier or name)[:60]} cannot parse it"
        return None

    return refuse
