"""A step as lists against a step as a table, at the paper's size: what it takes to take one up, and to work with a column.

    python benchmarks/step_table.py json=true
    python benchmarks/step_table.py rollouts=1280 tokens=2500 repeats=5

The lists are those that a step was before `vold_nemo/step`: one object a rollout with its text, ids and log-probs as Python
lists, pickled as the gather over the world pickles them; columns by rollout in dictionaries.  Both hold the same numbers, made
from one seed.

    take up    unpickle what a rank receives, and, of the table, put its groups in order
    subtract   one column from another, token by token
    bytes      as pickled

Seconds are processor time, the median of ``repeats`` in turn.  Keys: rollouts, samples, tokens (mean length), ranks, repeats,
seed, json, results (path without suffix, or empty).
"""

from __future__ import annotations

import pickle
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine, parse, tell  # noqa: E402

DEFAULTS = {
    "rollouts": 1280, "samples": 5, "tokens": 2500, "ranks": 8, "repeats": 5, "seed": 0, "json": False,
    "results": str(ROOT / "benchmarks/results/step_table"),
}  # fmt: skip


@dataclass
class ListRollout:
    """A rollout as it was."""

    prompt_index: int
    sample: int
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    text: str  # some four characters a token; of the table each rank decodes what it judges


def drawn(s: dict):
    """(prompts, responses, log-probs) of a step: lengths around ``tokens``, ids of a large vocabulary."""
    import torch

    g = torch.Generator().manual_seed(s["seed"])
    low, high = s["tokens"] // 2, s["tokens"] * 3 // 2
    lengths = torch.randint(low, high + 1, (s["rollouts"],), generator=g).tolist()
    prompts = [torch.randint(0, 151_000, (200,), generator=g).tolist() for _ in range(s["rollouts"] // s["samples"])]
    responses = [torch.randint(0, 151_000, (n,), generator=g).tolist() for n in lengths]
    logprobs = [torch.randn(n, generator=g).tolist() for n in lengths]
    return prompts, responses, logprobs


def shares(s: dict):
    """What each rank sends: {form: one pickle a rank}."""
    from vold_nemo.step import Step

    prompts, responses, logprobs = drawn(s)
    k = s["samples"]

    def text(row: int) -> str:
        return "".join(chr(97 + i % 26) * 4 for i in responses[row])

    sent: dict[str, list[bytes]] = {"lists": [], "table": []}
    for rank in range(s["ranks"]):
        groups = range(rank, len(prompts), s["ranks"])
        rows = [row for group in groups for row in range(group * k, (group + 1) * k)]
        lists = [ListRollout(row // k, row % k, prompts[row // k], responses[row], logprobs[row], text(row)) for row in rows]
        sent["lists"].append(pickle.dumps(lists))
        table = Step.of(
            [prompts[group] for group in groups], [responses[row] for row in rows], k, engine=[logprobs[row] for row in rows]
        )
        sent["table"].append(pickle.dumps(table))
    return sent


def measure(s: dict) -> dict:
    """Seconds and bytes of both forms, and the ratios."""
    from vold_nemo.step import Step

    sent, ranks = shares(s), s["ranks"]

    def take_up_lists():
        whole: list = [None] * s["rollouts"]
        for share in sent["lists"]:
            for rollout in pickle.loads(share):
                whole[rollout.prompt_index * s["samples"] + rollout.sample] = rollout
        return whole

    def take_up_table():
        return Step.interleaved([pickle.loads(share) for share in sent["table"]])

    lists, table = take_up_lists(), take_up_table()
    assert all(rollout.response_ids == table.responses[row].tolist() for row, rollout in enumerate(lists[:50]))
    table["old"] = table["engine"] * 0.5
    mine = {row: rollout.logprobs for row, rollout in enumerate(lists)}
    other = {row: [value * 0.5 for value in values] for row, values in mine.items()}

    def subtract_lists():
        return {row: [a - b for a, b in zip(mine[row], other[row], strict=True)] for row in mine}

    def subtract_table():
        return table["engine"] - table["old"]

    tried = {
        "take up": {"lists": take_up_lists, "table": take_up_table},
        "subtract": {"lists": subtract_lists, "table": subtract_table},
    }  # fmt: skip
    seconds: dict[str, dict[str, float]] = {}
    for what, forms in tried.items():
        times: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(s["repeats"]):
            for form, function in forms.items():
                began = time.process_time()
                function()
                times[form].append(time.process_time() - began)
        seconds[what] = {form: statistics.median(values) for form, values in times.items()}
    size = {form: sum(map(len, pickles)) for form, pickles in sent.items()}
    return {
        "seconds": seconds, "bytes": size, "ranks": ranks, "tokens": len(table.responses.flat),
        "faster": {what: found["lists"] / found["table"] for what, found in seconds.items()},
        "bytes_share": size["table"] / size["lists"],
    }  # fmt: skip


def table_of(s: dict, found: dict, where: str) -> str:
    lines = [
        "# A step as lists and as a table", "", "Made by `benchmarks/step_table.py`; see its docstring. Processor seconds.", "",
        "| | lists | table | lists / table |", "|---|---|---|---|",
    ]  # fmt: skip
    for what, seconds in found["seconds"].items():
        lines.append(f"| {what}, s | {seconds['lists']:.4f} | {seconds['table']:.4f} | {found['faster'][what]:.0f} |")
    size = found["bytes"]
    lines.append(f"| bytes | {size['lists']:,} | {size['table']:,} | {1 / found['bytes_share']:.2f} |")
    settings = ", ".join(f"{key}={value}" for key, value in s.items() if key not in ("json", "results"))
    return "\n".join([*lines, "", f"Settings: {settings}; {found['tokens']:,} tokens.", f"Measured on {where}.", ""])


def main(arguments: list[str]) -> None:
    s = parse(arguments, DEFAULTS)
    import torch

    torch.set_num_threads(1)
    found, where = measure(s), machine("cpu")
    tell(s, found, where, table_of(s, found, where))


if __name__ == "__main__":
    main(sys.argv[1:])
