"""Rates of the verifiers.

    python benchmarks/verifier.py [--workers 2] [--answers 20000]

Writes ``benchmarks/verifier.md``.  Every rate is of a real :class:`Scorer` with its pool, over answers that it has not seen.
"Cold" is the first thing that fresh workers are asked, "warm" comes after as many other answers of the same mix.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks.answer_mix import answers
from vold_nemo.config import RewardConfig
from vold_nemo.rewards import Scorer
from vold_nemo.rewards.registry import comparisons_in, resolve

MIXES = {
    "orz": "keys as in orz-57k",
    "orz_hard": "the same without plain numbers",
    "forms": "all hand-judged forms, other digits each time",
}


def processor_seconds(scorer: Scorer) -> float:
    """Of this process and the pool's workers."""
    own = time.process_time()
    return own + sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in scorer.pids())


def measure(scorer: Scorer, verifier: str, pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Answers a second, milliseconds of processor time an answer, time-outs."""
    items = [(response, truth, verifier) for response, truth in pairs]
    began, spent = time.perf_counter(), processor_seconds(scorer)
    verdicts = scorer.score(items)
    seconds = time.perf_counter() - began
    return {
        "rate": len(items) / seconds,
        "ms": 1e3 * (processor_seconds(scorer) - spent) / len(items),
        "timeouts": sum(verdict.trouble == "time-out" for verdict in verdicts),
    }


def asked(pairs: list[tuple[str, str]]) -> float:
    """Share of the answers that are put to a worker: neither decided here nor asked before."""
    found = {comparison for pair in pairs for comparison in comparisons_in(resolve("math").read(*pair))}
    return len(found) / len(pairs)


def math_rates(mix: str, workers: int, count: int) -> str:
    """One line of the report."""
    stream = answers(mix, seed=0)
    cold, between, warm = (list(islice(stream, count)) for _ in range(3))
    scorer = Scorer(RewardConfig(workers=workers))
    began = time.perf_counter()
    scorer.start({"math"})
    scorer.score([(r"\boxed{x+1}", f"{i}+x", "math") for i in range(4 * workers)])
    started = time.perf_counter() - began
    first = measure(scorer, "math", cold)
    scorer.score([(*pair, "math") for pair in between])
    later = measure(scorer, "math", warm)
    scorer.close()
    load = os.getloadavg()[0]
    return (
        f"| {MIXES[mix]} | {asked(cold + warm):.0%} | {first['rate']:,.0f} ({first['ms']:.2f} ms) | {later['rate']:,.0f} "
        f"({later['ms']:.2f} ms) | {first['timeouts'] + later['timeouts']} | {started:.1f} s | {load:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--answers", type=int, default=20_000, help="of exact match; math-verify gets a tenth")
    arguments = parser.parse_args()
    scorer = Scorer(RewardConfig())
    exact = measure(scorer, "boxed", list(islice(answers("orz", seed=0), arguments.answers)))
    exact_said = f"**{exact['rate']:,.0f} answers a second** ({exact['ms']:.3f} ms; load {os.getloadavg()[0]:.1f})"
    rows = [math_rates(mix, arguments.workers, arguments.answers // 10) for mix in MIXES]
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    report = [
        "# Rates of the verifiers", "",
        f"`python benchmarks/verifier.py` on {machine}, {arguments.workers} workers, Python {platform.python_version()}.",
        "Answers have 2,000 characters; what the mixes suppose is in `benchmarks/answer_mix.py`. In brackets: processor time",
        "of all processes, an answer. Cold: the first answers of fresh workers. Load: the machine's one-minute average when",
        "the line was measured.",
        "", f"`boxed` (exact match), one process: {exact_said}.", "", "`math` (math-verify), answers a second:", "",
        "| mix | asked of a worker | cold | warm | time-outs | start of the workers | load |",
        "|---|---|---|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    path = Path(__file__).with_suffix(".md")
    path.write_text("\n".join(report))
    print("\n".join(report))


if __name__ == "__main__":
    main()
