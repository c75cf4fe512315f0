"""``inspection.html``, ``inspection.json``, and the same tables for a terminal: what a data set holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vold_nemo.config.writing import replace_text, writing
from vold_nemo.data.inspection import Inspection, quantiles
from vold_nemo.data.pictures import PictureError
from vold_nemo.data.prompts import question_text
from vold_nemo.pages.blocks import Card, Items, Section, Table, embed_images
from vold_nemo.pages.render import harmless, now, render

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 4_000  # characters of an example


@dataclass(frozen=True)
class Shown:
    """A table of the page and of the terminal; ``numeric`` columns are set to the right."""

    title: str
    lead: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


def tables(found: Inspection) -> Iterator[Shown]:
    columns = [
        [column.name, ", ".join(f"{kind} {n:,}" if len(column.kinds) > 1 else kind for kind, n in column.kinds.most_common()),
         f"{sum(column.kinds.values()) - column.kinds['null']:,}", _line(column.example, 80)]
        for column in found.columns
    ]  # fmt: skip
    lead = f"Of the first {found.looked_at:,} rows; any of these names may stand in fields.*."
    yield Shown("Columns", lead, ["column", "kind", "there in", "for example"], columns, frozenset({2}))
    lengths = [[what, *(f"{n:,}" for n in quantiles(all_))] for what, all_ in found.lengths.items()]
    lead = "Of the usable rows; tokens are those of the rendered prompt (inspect.tokenizer)."
    yield Shown("Lengths", lead, ["", "least", "median", "95 %", "most"], lengths, frozenset({1, 2, 3, 4}))
    for keys in found.keys:
        report = keys.report
        rows = [
            [form, f"{count:,}", f"{count / report.keys:.1%}", how, _line(example, 60), row]
            for form, count, how, example, row in keys.rows()
        ]
        head = ["form", "keys", "share", f"rewarded by {report.verifier}", "for example", "row"]
        yield Shown("Keys", f"{report.describe()[1]}.", head, rows, frozenset({1, 2}))
    bad = [[reason, f"{count:,}"] for reason, count in found.rejected.most_common()]
    lead = f"{sum(found.rejected.values()):,} of {found.rows:,} rows; they are in rejected.jsonl."
    yield Shown("Would be rejected", lead, ["why", "rows"], bad, frozenset({1}))


def said(found: Inspection) -> list[str]:
    """What should be known before a run."""
    lines = [f"{found.usable:,} of {found.rows:,} rows are usable"]
    if found.stops:
        lines.append(f"a run would stop: {found.stops}")
    if found.duplicates:
        conflict = f", {found.conflicting:,} of them with another answer" if found.conflicting else ""
        lines.append(f"{found.duplicates:,} questions were there before{conflict}")
    if set(found.images) - {0}:
        lines.append("images of a row: " + ", ".join(f"{n} in {rows:,}" for n, rows in sorted(found.images.items())))
    lines += [f"{note}: {count:,} rows" for note, count in found.notes.items()]
    return lines + [warning for keys in found.keys for warning in keys.report.warnings()]


def write(folder: str | Path, found: Inspection) -> Path:
    """``inspection.json`` and ``inspection.html`` in ``folder``; returns the page."""
    folder = Path(folder)
    with writing("inspect.path", folder):
        replace_text(folder / "inspection.json", json.dumps(as_data(found), indent=1) + "\n")
        replace_text(folder / "inspection.html", draw(found))
    return folder / "inspection.html"


def as_data(found: Inspection) -> dict[str, Any]:
    return {
        "path": found.path, "split": found.split, "rows": found.rows, "usable": found.usable,
        "columns": [{"name": c.name, "kinds": dict(c.kinds), "example": c.example} for c in found.columns],
        "lengths": {what: dict(zip(("least", "median", "p95", "most"), quantiles(all_), strict=True))
                    for what, all_ in found.lengths.items()},
        "keys": [
            {"verifier": keys.report.verifier, "keys": keys.report.keys, "better": keys.report.better(),
             "never": keys.report.met.get(keys.report.verifier, {}).get(False, 0),
             "forms": [dict(zip(("form", "keys", "rewarded", "example", "row"), row, strict=True)) for row in keys.rows()]}
            for keys in found.keys
        ],
        "duplicates": found.duplicates, "conflicting": found.conflicting, "rejected": dict(found.rejected),
        "notes": found.notes, "images": {str(n): rows for n, rows in found.images.items()}, "stops": found.stops,
        "wrong": str(found.wrong) if found.wrong is not None else None,
    }  # fmt: skip


def draw(found: Inspection) -> str:
    sections = [Section(one.title, one.lead, [Table(one.head, one.rows, one.numeric)]) for one in tables(found) if one.rows]
    cards = [
        Card(prompt.id, question_text(prompt)[:LONGEST], _key(prompt), _pictures(prompt), []) for prompt in found.examples
    ]
    if cards:
        sections.append(Section("Examples", "The first usable rows, as a model is asked.", cards))
    notes = [Items([*said(found), *([str(found.wrong)] if found.wrong is not None else [])])]
    return render(f"Data: {found.path}", found.path, f"Split {found.split}.", sections, over=now(), notes=notes)


def _pictures(prompt: Any) -> list[str]:
    try:
        return embed_images(prompt)
    except (PictureError, OSError):  # gone since it was read
        return []


def _key(prompt: Any) -> str:
    parts = [prompt.answer if prompt.answer is not None else "none"]
    parts += [f"{name} {value}" for name in ("verifier", "domain", "source", "teacher") if (value := getattr(prompt, name))]
    return ", ".join(parts)


def show(found: Inspection, console: Console) -> None:
    """The tables and examples on a terminal."""
    from rich.table import Table as Grid

    console.print(f"{found.path}, split {found.split}", style="bold")
    for one in tables(found):
        if not one.rows:
            continue
        console.print(f"\n{one.title}: {one.lead}", style="dim")
        grid = Grid(box=None, pad_edge=False, header_style="dim")
        for number, name in enumerate(one.head):
            grid.add_column(name, justify="right" if number in one.numeric else "left", overflow="fold")
        for row in one.rows:
            grid.add_row(*(harmless(cell) for cell in row))
        console.print(grid)
    for prompt in found.examples:
        sizes = "".join(f", picture {width} x {height}" for width, height in prompt.sizes)
        console.print(f"\nexample {harmless(prompt.id)}{sizes}", style="dim")
        console.print(harmless(question_text(prompt)[:LONGEST]), soft_wrap=True)
        console.print(f"key: {harmless(_key(prompt))}", soft_wrap=True)
    console.print()
    for line in said(found):
        console.print(harmless(line), soft_wrap=True)


def _line(text: str, length: int) -> str:
    short = " ".join(text.split())
    return short if len(short) <= length else short[: length - 1] + "…"
