"""Rates of the verifiers.

    python benchmarks/verifier.py [--workers 2] [--answers 20000] [--beside /path/to/another/checkout]

Writes ``benchmarks/verifier.md``.  Every rate is of a real :class:`Scorer` with its pool, over answers that it has not seen.
"Cold" is the first thing that fresh workers are asked, "warm" comes after as many other answers of the same mix.  ``--beside``
measures another checkout's ``math`` in the same run, in turns, by the processor time of one process.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
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


# One process, no pool: milliseconds of processor time an answer, of each mix, cold and warm.
ALONE = """
import sys, time
from itertools import islice
sys.path.insert(0, sys.argv[1])
from benchmarks.answer_mix import answers
from vold_nemo.rewards.equivalence import compare, screen, warm_up
from vold_nemo.rewards.verdict import Verdict
warm_up()
count = int(sys.argv[2])
for mix in sys.argv[3:]:
    stream = answers(mix, seed=0)
    for _ in range(2):
        pairs, began = list(islice(stream, count)), time.process_time()
        for pair in pairs:
            said = screen(*pair)
            if not isinstance(said, Verdict):
                compare(said.text, said.truth)
        print(1e3 * (time.process_time() - began) / count)
"""


def beside(other: Path, count: int, turns: int = 3) -> list[str]:
    """Lines of a table: this checkout's and another's processor time, medians of turns, each turn a process of its own."""
    found: dict[Path, list[list[float]]] = {other: [], Path(__file__).resolve().parent.parent: []}
    for _ in range(turns):
        for root, times in found.items():
            said = subprocess.run(
                [sys.executable, "-c", ALONE, str(root), str(count), *MIXES], capture_output=True, text=True, check=True,
                env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}, cwd=root,
            )  # fmt: skip
            times.append([float(line) for line in said.stdout.split()])
    old, new = ([statistics.median(column) for column in zip(*times, strict=True)] for times in found.values())
    names = [f"{text}, {when}" for text in MIXES.values() for when in ("cold", "warm")]
    return [f"| {name} | {b:.3f} | {n:.3f} | {b / n:.2f} |" for name, b, n in zip(names, old, new, strict=True)]


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
    parser.add_argument("--answers", type=int, default=20_000, help="of exact match; `math` gets a tenth")
    parser.add_argument("--beside", type=Path, help="another checkout, whose rates stand beside ours")
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
        "", f"`boxed` (exact match), one process: {exact_said}.", "", "`math`, answers a second:", "",
        "| mix | asked of a worker | cold | warm | time-outs | start of the workers | load |",
        "|---|---|---|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    if arguments.beside is not None:
        report += [
            "Milliseconds of processor time an answer, one process, medians of three turns of both codes in one run;",
            "`before` is the code before boxes were read as shapes (e6a086d):", "",
            "| mix | before | now | times as fast |", "|---|---|---|---|",
            *beside(arguments.beside, arguments.answers // 20), "",
        ]  # fmt: skip
    path = Path(__file__).with_suffix(".md")
    path.write_text("\n".join(report))
    print("\n".join(report))


if __name__ == "__main__":
    main()
