"""What a step's verdicts say about the reward, and when it must be said aloud.

A reward of zero looks the same whether the student is wrong, the answers are cut off, or nobody can read them.  So a step
says for each verifier what share was right, unread and cut off, and why; and the console and ``recipes/watch.py`` say it in a
sentence where a run cannot learn from it.  Pure functions of verdicts, and of the numbers in metrics.jsonl.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vold_nemo.config import ConfigError
from vold_nemo.rewards.key_forms import HOPELESS, KeyReport
from vold_nemo.rewards.verdict import Verdict, unread

REASONS = 5  # the most frequent ones of each verifier, in metrics.jsonl
MOSTLY = 0.5  # a share of answers unread, or cut off, from which on an alarm is due
TROUBLED = 0.02  # the same of time-outs and errors
TOLD = 0.05  # a share that is told in an alarm
AGAIN = 10  # steps before the same alarm is repeated
_SAID = {
    "no box": "have no box", "the box never closes": "have a box that never closes", "the box is empty": "have an empty box",
    "a box in the thinking part only": "have a box in the thinking part only", "differs": "differ from the key",
    "cannot be parsed": "cannot be parsed", "the box holds no number": "have no number in the box",
    "the box holds no letter": "have no letter in the box", "wrong": "are wrong",
}  # fmt: skip


def diagnose(verdicts: Sequence[Verdict], verifiers: Sequence[str], cut_off: Sequence[bool] = ()) -> dict[str, Any]:
    """Metrics of a step: share of answers that could be read, time-outs, errors and crashes, answers per verifier; and, of each
    verifier, the shares of its answers that were right (reward 1), unread, cut off, in trouble (a time-out or an error) and
    judged by a language model, and the most frequent reasons of those that were not right.

    ``verifiers`` and ``cut_off`` are those of the answers, in order.
    """
    cut_off = cut_off or [False] * len(verdicts)
    found: dict[str, Any] = {
        "parsed_rate": sum(verdict.extracted is not None for verdict in verdicts) / max(1, len(verdicts)),
        "timeouts": sum(verdict.trouble == "time-out" for verdict in verdicts),
        "errors": sum(verdict.trouble == "error" for verdict in verdicts),
        "answers": dict(sorted(Counter(verifiers).items())),
        "by_verifier": {},
    }
    for name in found["answers"]:
        rows = [row for row, one in enumerate(verifiers) if one == name]
        said = [verdicts[row] for row in rows]
        found["by_verifier"][name] = {
            "right": _share(verdict.reward == 1 for verdict in said),
            "unread": _share(map(unread, said)),
            "cut_off": _share(cut_off[row] for row in rows),
            "trouble": _share(verdict.trouble is not None for verdict in said),
            **({"judged": share} if (share := _share(v.reason.startswith("judge: ") for v in said)) else {}),
            "reasons": _reasons(said),  # pairs: loggers that want numbers leave a list alone
        }
    return {"reward": found}


def _share(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


def _reasons(verdicts: Sequence[Verdict]) -> list[list]:
    counts = Counter(_kind(verdict.reason) for verdict in verdicts if verdict.reward < 1)
    return [[reason, count / len(verdicts)] for reason, count in counts.most_common(REASONS)]


def _kind(reason: str) -> str:
    """``reason`` without what belongs to one answer alone."""
    if reason.startswith("error: "):
        return ":".join(reason.split(":")[:2])
    return reason.partition(" (")[0][:80] if reason.startswith("judge: ") else reason[:80]


def alarms(metrics: Mapping[str, Any]) -> list[str]:
    """Sentences about a step of metrics.jsonl: one on all answers, or one for each verifier that has something to say."""
    by_verifier = (metrics.get("reward") or {}).get("by_verifier") or {}
    found = []
    for name, said in by_verifier.items():
        nothing = metrics.get("reward_mean") == 0 if len(by_verifier) == 1 else said["right"] == 0
        if nothing or said["unread"] >= MOSTLY or said["cut_off"] >= MOSTLY or said["trouble"] >= TROUBLED:
            head = f"reward {metrics.get('reward_mean', 0.0):.3f}"
            if len(by_verifier) > 1:
                head += f", {name}: {_percent(said['right'])} right"
            found.append(f"{head}; {', '.join(_details(said, metrics))}")
    return found


def _details(said: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[str]:
    words = []
    for reason, share in said["reasons"]:
        if share >= TOLD or (share >= TROUBLED and reason.startswith(("error", "time-out", "the verifier"))):
            told = _SAID.get(reason)
            words.append(f"{_percent(share)} of answers {told}" if told else f"{_percent(share)} of answers: {reason}")
    yield from words[:3] or ["no reason was given"]
    if said["cut_off"] >= TOLD:
        longest = (metrics.get("response_tokens") or {}).get("max")
        yield f"{_percent(said['cut_off'])} were cut off" + (f" at {longest}" if longest else "")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def require_verdicts(when: str, troubles: Sequence[str | None], reasons: Sequence[str]) -> None:
    """A step of which nothing was judged teaches that everything is wrong.

    Raises:
        ConfigError: every verdict is an error or a time-out.
    """
    if not troubles or not all(troubles):
        return
    reason, count = Counter(reasons).most_common(1)[0]
    raise ConfigError(
        "reward", f"{when}: none of {len(reasons)} answers was judged; {count} of them: {reason}",
        "a verifier that comes to verdicts", "correct the verifier, or what it needs (try it: recipes/verify.py)",
    )  # fmt: skip


class Bell:
    """Says an alarm when it begins, and every :data:`AGAIN` steps while it lasts."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def ring(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        told = []
        for said in alarms(metrics):
            kind = "".join(letter for letter in said if not (letter.isdigit() or letter == "."))
            if step - self._last.get(kind, -AGAIN) >= AGAIN:
                self._last[kind] = step
                told.append(said)
        return told


def of_keys(report: KeyReport) -> str | None:
    """An alarm about keys that no answer can meet, where they are more than :data:`TOLD` of a set."""
    never = report.met[report.verifier][False] if report.keys else 0
    if never <= TOLD * report.keys:
        return None
    forms = ", ".join(f"{form} {count:,}" for form, count in report.forms.most_common() if form in HOPELESS)
    return (
        f"{never / report.keys:.0%} of the keys ({never:,} of {report.keys:,}) can never be right under {report.verifier}, "
        f"whatever is answered: the reward stays below {1 - never / report.keys:.2f}" + (f" ({forms})" if forms else "")
    )
