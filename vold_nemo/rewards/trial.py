"""The user's own verifier, called a few times before anything rests on it.

A function that returns a dict, forgets to return, or wants other arguments never rewards anybody, and a run that learns nothing
looks like one that has not learnt yet.  So each is asked, in a worker and within its limits, about the keys of a few rows,
boxed as an answer, and about a response without any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vold_nemo.config import ConfigError
from vold_nemo.rewards.own import SIGNATURE, NotAVerdict
from vold_nemo.rewards.verdict import Verdict

EXAMPLES = 8  # rows
NO_ANSWER = "I do not know."
_NEVER = (f"error: {NotAVerdict.__name__}: ", f"error: {ConfigError.__name__}: ")  # worker.py: how a reason of these begins


def try_out(
    path: str, keys: Sequence[str], judge: Callable[[Sequence[Sequence[str]]], list[Verdict]]
) -> list[str]:
    """Warnings about the verifier at ``path``, tried on ``keys`` (on the key 1, if there are none).

    Raises:
        ConfigError: it can give no verdict: it returns none, has other parameters, or cannot be imported in a worker.
    """
    keys = keys or ["1"]
    asked = [(path, f"The answer is \\boxed{{{key}}}.", key) for key in keys] + [(path, NO_ANSWER, keys[0])]
    verdicts = judge(asked)
    for verdict in verdicts:
        if verdict.reason.startswith(_NEVER):
            said = verdict.reason.split(": ", 2)[2]
            raise ConfigError("reward.verifier", path, SIGNATURE, f"called on the first row: {said}")
    found = []
    if troubles := [verdict.reason for verdict in verdicts if verdict.trouble is not None]:
        found.append(f"verifier {path}: {len(troubles)} of {len(verdicts)} first calls came to no verdict: {troubles[0]}")
    elif not any(verdict.reward > 0 for verdict in verdicts):
        found.append(f"verifier {path}: the key itself, \\boxed{{...}}, has no reward in {len(keys)} of {len(keys)} first rows")
    return found
