"""Whether an answer can be judged at all: a key that no response could meet would teach that everything is wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable

from vold_nemo.config import ConfigError
from vold_nemo.rewards.registry import Sum, check, resolve
from vold_nemo.rewards.verdict import Verdict


def refusal(default: str, *, parse: bool = True) -> Callable[[str, str | None], str | None]:
    """A function of (answer, verifier or None for ``default``): why the answer cannot be a key, or None if it can.

    The key itself, boxed, is read as a response: a verifier that calls it wrong cannot parse it (``choice`` with a number,
    unbalanced braces).  What a verifier leaves to a worker process is taken on trust: this reads and computes nothing.
    Without ``parse`` only a row's verifier that does not exist is a reason: questions that are judged and not learned from.
    """

    @functools.lru_cache(maxsize=4096)
    def refuse(answer: str, verifier: str | None) -> str | None:
        name = verifier or default
        try:
            check(name)
        except ConfigError:
            if verifier is None:
                raise  # the configuration is wrong, not the row
            return f"verifier {verifier[:60]!r} does not exist"
        if not parse:
            return None
        reading = resolve(name).read(f"\\boxed{{{answer}}}", answer)
        parts = [part for _, _, part in reading.terms] if isinstance(reading, Sum) else [reading]
        if any(isinstance(part, Verdict) and part.reward < 1 for part in parts):
            return f"verifier {name[:60]} cannot parse it"
        return None

    return refuse
