"""``rehearsal.html``: what any number of rehearsals of one configuration found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vold_nemo.config.writing import replace_text, writing
from vold_nemo.pages.blocks import Cell, Details, Grid, Section, Table
from vold_nemo.pages.charts import Stack, stacked_rows
from vold_nemo.pages.render import render

GIB = 2**30
COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#66c2a5", "#a6761d")
REST = "#999999"
SMALL = 0.01  # of the largest peak: what no phase holds more of has no colour


def write(folder: str | Path, found: Sequence[dict[str, Any]], capacity_gib: float | None) -> Path:
    folder = Path(folder)
    with writing("rehearse.path", folder):
        replace_text(folder / "rehearsal.html", draw(found, capacity_gib))
    return folder / "rehearsal.html"


def draw(found: Sequence[dict[str, Any]], capacity_gib: float | None) -> str:
    wrong = sum(len(one["violations"]) for one in found)
    first = found[0]
    verdict = f"{wrong} violation{'s' * (wrong != 1)}" if wrong else "No violation"
    lead = (
        f"{verdict} on {len(found)} rank{'s' * (len(found) != 1)}. One rank at a time, executed on fake CUDA tensors: "
        "operations, devices, groups, bytes and waits are those of a GPU; no number was computed, nothing was measured."
    )
    sections = [Section("Violations", "What would fail, or not be as planned.", [_violations(found)])] if wrong else []
    for one in found:
        sections.append(Section(_title(one), _lead(one), _blocks(one, capacity_gib)))
    heading = f"Rehearsal of {first['experiment']} on {first['cluster']}"
    return render(f"Rehearsal of {first['experiment']}", heading, lead, sections)


def _title(one: dict[str, Any]) -> str:
    stage = {"sft": "Stage 1", "vold": "Stage 2", "export": "Export"}[one["stage"]]
    return f"{stage}, rank {one['rank']} of {one['world']}"


def _lead(one: dict[str, Any]) -> str:
    place = ", ".join(f"{name} {rank}" for name, rank in one["place"].items())
    batches = one["micro_batches"]
    did = f"{batches['run']} of {batches['planned']} micro-batches run"
    if files := one.get("files"):
        place = f"One process; peaks are of {one['memory']} memory"
        did = f"{files['read_bytes'] / 1e9:,.1f} GB read, {files['written_bytes'] / 1e9:,.1f} GB written"
    return (
        f"{place}. {one['layers']} layers{', apex' if one.get('apex') else ''}; {did}; "
        f"{one['processor_seconds']:.0f} processor seconds; {one['when']}."
    )


def _violations(found: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [_title(one), Cell(wrong["kind"], look="tone bad"), wrong["what"], wrong["place"]]
        for one in found for wrong in one["violations"]
    ]  # fmt: skip
    return Table(["where", "kind", "what", "place"], rows)


def _blocks(one: dict[str, Any], capacity_gib: float | None) -> list[Any]:
    limit = ("one GPU", capacity_gib) if capacity_gib and one.get("memory") != "host" else None
    largest = max((row["peak_bytes"] for row in one["phases"]), default=0)
    makers = [row["phase"] for row in one["phases"] if any(
        other["made_in"].get(row["phase"], 0) > SMALL * largest for other in one["phases"]
    )]  # fmt: skip
    colours = dict(zip(makers, COLOURS, strict=False))
    stacks = []
    for row in one["phases"]:
        shown = {maker: row["made_in"].get(maker, 0) for maker in colours}
        parts = [(f"made in {maker}", size / GIB, colours[maker]) for maker, size in shown.items() if size]
        rest = row["peak_bytes"] - sum(shown.values())
        if row["peak_bytes"]:
            stacks.append(Stack(row["phase"], [*parts, ("the rest", max(0, rest) / GIB, REST)]))
    title = "Peak of each phase, by the phase that its memory was taken in, GiB"
    chart = stacked_rows(title, stacks, part="{:.2f} GiB", total="{:.1f}", limit=limit)
    return [chart, _phases(one), *_more(one)]


def _phases(one: dict[str, Any]) -> Table:
    rows = []
    for row in one["phases"]:
        planned, peak = row["planned_bytes"], row["peak_bytes"]
        seconds = one["seconds"].get(row["phase"], {})
        time = seconds.get("work", 0.0) + seconds.get("links", 0.0)
        rows.append([
            row["phase"], f"{peak / GIB:.2f}",
            *((f"{planned / GIB:.2f}", f"{peak / planned - 1:+.1%}") if planned else ("", "")),
            f"{row['launches']:,}", f"{sum(row['flops'].values()) / 1e12:.1f}", str(row["waits"]),
            f"{time:.1f}" if time else "", f"{seconds['planned']:.1f}" if "planned" in seconds else "",
        ])  # fmt: skip
    head = ["phase", "peak, GiB", "planned", "", "launches", "TFLOP", "waits", "seconds, from rates", "planned"]
    return Table(head, rows, range(1, 9))


def _more(one: dict[str, Any]) -> list[Any]:
    holders = [
        [row["phase"], f"{holder['bytes'] / GIB:.3f}", holder["place"], holder["made_in"]]
        for row in one["phases"] for holder in row["holders"]
    ]  # fmt: skip
    collectives = [
        [call["phase"], call["operation"], call["group"], str(call["size"]),
         {"node": "inside a node", "network": "between nodes"}.get(call["link"], "objects"), f"{call['calls']:,}",
         f"{call['bytes'] / 1e9:.3f}" if call["bytes"] is not None else ""]
        for call in one["collectives"]
    ]  # fmt: skip
    waits = [[wait["phase"], wait["what"], wait["place"], f"{wait['count']:,}"] for wait in one["waits"]]
    copies = [[copy["phase"], copy["what"], copy["place"], f"{copy['count'] / 1e9:.3f}"] for copy in one["copies"]]
    groups = one["groups"]
    said = (
        f"{groups['of_this_rank']} groups of this rank, {groups['made_in_the_world']} in the world; gloo in {groups['gloo']} "
        f"of them, at most {groups['gloo_peers']} connections; {len(groups['nccl_used'])} NCCL communicators."
    )
    head = ["phase", "operation", "group", "ranks", "link", "calls", "GB"]
    return [Grid([
        Details("Holders of each peak", [Table(["phase", "GiB", "line", "made in"], holders, {1})]),
        Details("Collectives", [Table(head, collectives, {3, 5, 6})]),
        Details("Where the host waits for the device", [Table(["phase", "for", "line", "times"], waits, {3})]),
        Details("Copies between host and device", [Table(["phase", "direction", "line", "GB"], copies, {3})]),
        Details("Groups and connections", said),
    ], look="")]  # fmt: skip
