"""``contamination.html``: each training prompt that gives an evaluation question away, beside it, the shared words marked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from vold_nemo.config.writing import replace_text, writing
from vold_nemo.data.prepare import CONTAMINATED
from vold_nemo.pages.blocks import Details, Section, Table, Texts, marked
from vold_nemo.pages.render import now, render

SHOWN = 200  # pairs of each evaluation set on the page; the file has all
IN_TERMINAL = 3
LONGEST = 6_000  # characters of a text


def pairs(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of ``contaminated.jsonl``."""
    file = Path(folder) / CONTAMINATED
    if file.is_file():
        with file.open("rb") as lines:
            yield from map(json.loads, lines)


def write(folder: str | Path, report: dict[str, Any]) -> Path:
    """``contamination.html`` in ``folder``, whole or not at all; ``report`` as ``report.json`` has it."""
    file = Path(folder) / "contamination.html"
    with writing("prepare.path", folder):
        replace_text(file, draw(list(pairs(folder)), report))
    return file


def draw(found: list[dict[str, Any]], report: dict[str, Any]) -> str:
    sections = [Section("Counts", "", [_counts(report)])]
    by_set: dict[str, list[dict[str, Any]]] = {}
    for pair in found:
        by_set.setdefault(pair["evaluation"], []).append(pair)
    for name, members in by_set.items():
        # what is least certain is read first
        members.sort(key=lambda pair: (pair["kind"] == "exact", pair["share"]))
        shown = [_texts(pair) for pair in members[:SHOWN]]
        more = f"; the first {SHOWN}, all are in {CONTAMINATED}" if len(members) > SHOWN else ""
        lead = f"{len(members):,} prompts, those with the least in common first{more}. Words that both have are marked."
        sections.append(Section(name, lead, [shown[0], Details("the others", shown[1:])] if shown[1:] else shown))
    lead = (
        f"Runs of {report['ngram']} words that cover {report['share']:.0%} of an evaluation question; runs in more than "
        f"{report['common']} questions or prompts are phrases and do not count. Numbers: {report['numbers']}."
    )
    heading = f"{len(found):,} prompts that give an evaluation question away"
    return render("Contamination", heading, lead, sections, over=now())


def _counts(report: dict[str, Any]) -> Table:
    rows = []
    for name, left in report["sets"].items():
        for evaluation, kinds in left["contaminated"].items():
            said = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
            rows.append([name, evaluation, f"{sum(kinds.values()):,}", said])
    return Table(["prompts", "evaluation set", "rows", "how"], rows, {2})


def _texts(pair: dict[str, Any]) -> Texts:
    titles = (f"{pair['set']} {pair['id']}", f"{pair['evaluation']} {pair['question_id']}")
    both = (marked(pair["prompt"], pair["in_prompt"]), marked(pair["question"], pair["in_question"]))
    note = f"{pair['kind']}: {pair['share']:.0%} of the question's words"
    return Texts(titles, (_cut(both[0]), _cut(both[1])), note)


def _cut(pieces: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    left, found = LONGEST, []
    for text, shared in pieces:
        if left <= 0:
            return [*found, (" …", False)]
        found.append((text[:left], shared))
        left -= len(text)
    return found


def in_words(folder: str | Path) -> list[str]:
    """The first pairs for a terminal, shared words in brackets."""
    lines = []
    for pair in islice(pairs(folder), IN_TERMINAL):
        lines += ["", f"{pair['set']} {pair['id']}, {pair['kind']}, {pair['share']:.0%} of {pair['evaluation']} "
                  f"{pair['question_id']} (shared words in ⟦⟧)"]  # fmt: skip
        for name, text, spans in (("prompt", "prompt", "in_prompt"), ("question", "question", "in_question")):
            shown = "".join(f"⟦{piece}⟧" if shared else piece for piece, shared in marked(pair[text], pair[spans]))
            lines.append(f"  {name:<9}{' '.join(shown.split())[:600]}")
    return lines
