"""One page a target: the paper's table or figure beside ours, and whose each number is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vold_nemo.config.writing import replace_text, writing
from vold_nemo.evaluation.records import plain
from vold_nemo.evaluation.results import Results
from vold_nemo.evaluation.statistics import mean_interval
from vold_nemo.pages.blocks import Cell, Grid, Items, Section, Table, decided, minus, own_scores, share, shown
from vold_nemo.pages.charts import ARM_COLOURS, Bar, Series, arm_colours, bar_chart, line_chart
from vold_nemo.pages.render import render
from vold_nemo.pages.report.material import RunRecord, read_run
from vold_nemo.pages.report.verdict import CAVEATS, title_of
from vold_nemo.pages.reproduce.targets import LENGTHS, Arm
from vold_nemo.pages.reproduce.work import Reproduction, accuracies

LAST = 10  # steps at the end of training over which a final reward is averaged
WHOSE = {
    "miniature": "Theirs: a Qwen2.5-VL-3B student on public benchmarks. Ours: the miniature, a student of a million "
    "parameters that calculates modulo 10. Only the order of the rows can be compared, never the values.",
    "paper": "Theirs: as printed, answers read by a GPT-4o-mini judge under VLMEvalKit. Ours: this "
    "repository’s run, scored by rules.",
}



def write_page(work: Reproduction, folder: Path) -> tuple[Path, dict[str, Any]]:
    """``<folder>/<target>.html`` and ``<target>.json`` with our numbers, the paper's, and what is missing."""
    missing = [f"{arm.name}: {arm.title}" for arm in work.missing()]
    target = work.target
    ours, sections = {"table": _table, "curves": _curves, "bars": _bars, "lengths": _lengths}[target.kind](work)
    found = {"target": target.name, "scale": work.scale, "ours": plain(ours), "paper": target.paper, "claim": target.claim,
             "missing": missing}  # fmt: skip
    small = [*([target.note[work.scale]] if work.scale in target.note else []), " ".join([WHOSE[work.scale], *CAVEATS])]
    page = render(
        f"{target.name}: {target.title}", target.title, f"The paper’s claim: {target.claim}",
        [*sections, Section("", "", small), Section("Not made yet", "", [Items(missing)])],
        over=f"{target.name} · {work.scale} · {datetime.now(UTC):%d %B %Y}",
    )  # fmt: skip
    with writing("reproduce.path", folder):
        replace_text(folder / f"{target.name}.html", page)
        replace_text(folder / f"{target.name}.json", json.dumps(found, indent=1) + "\n")
    return folder / f"{target.name}.html", found


def _colours(work: Reproduction) -> dict[str, str]:
    return arm_colours([arm.name for arm in work.arms])


def _theirs(work: Reproduction) -> Section:
    columns = list(next(iter(work.target.paper.values()))) if work.target.paper else []
    if not columns:
        lead = "The paper prints no numbers here that could be set beside ours; its claim is above."
        return Section("The paper’s", lead)
    arms = [arm for arm in work.arms if arm.name in work.target.paper]
    rows = [[_column(c), *(f"{work.target.paper[arm.name][c]:.1f}" for arm in arms)] for c in columns]
    lead = "As printed (arXiv 2510.23497), percent unless the benchmark has a score of its own."
    return Section("The paper’s numbers", lead, [_table_of(work, arms, rows)])


def _column(name: str) -> str:
    kind, colon, score = name.partition(": ")
    return f"{title_of(kind)}{colon}{score}"


def _table_of(work: Reproduction, arms: list[Arm], rows: list[list[Cell | str]]) -> Table:
    colours = _colours(work)
    return Table(["", *(Cell(arm.title, colour=colours[arm.name]) for arm in arms)], rows, range(1, len(arms) + 1))


def _sets(work: Reproduction, results: Results) -> list[str]:
    return [kind for kind in results.differences if work.scale == "miniature" or kind in work.target.sets]


def _table(work: Reproduction) -> tuple[dict, list[Section]]:
    results = accuracies(work)
    if results is None:
        return {}, [_theirs(work)]
    arms, sets = [arm.name for arm in work.arms], _sets(work, results)
    ours = {arm: {kind: e for kind in sets if (e := results.accuracy[arm].get(kind))} for arm in arms}
    rows = [[title_of(kind), *(share(ours[arm].get(kind)) for arm in arms)] for kind in sets]
    rows += own_scores(list(ours.values()), sets, title_of)
    pairs = [
        [minus(entry), kind, shown(entry), decided(entry)]
        for first, second in zip(arms[1:], arms, strict=False)
        for kind in sets
        if (entry := results.difference(kind, first, second)) is not None
    ]
    tables = [_table_of(work, work.arms, rows), Table(["Difference", "Questions", "Paired", "At 5 %"], pairs)]
    lead = "Greedy accuracy with 95 % intervals; each arm is compared with the one before it."
    return ours, [Section("Our numbers", lead, tables), _theirs(work)]


def _records(work: Reproduction) -> dict[str, RunRecord]:
    found = {arm.name: read_run(arm.name, work.run_of(arm), []) for arm in work.arms}
    return {name: record for name, record in found.items() if record.rows}


def _curves(work: Reproduction) -> tuple[dict, list[Section]]:
    colours, records = _colours(work), _records(work)
    titles = {arm.name: arm.title for arm in work.arms}
    charts, ours = [], {}
    metrics = {"reward_mean": "Reward of rollouts on text", "validation.image_accuracy": "Validation accuracy on images"}
    for metric, title in metrics.items():
        dots = metric.startswith("validation")
        series = [Series(titles[n], r.curve(metric), colours[n], 1 if dots else 5, dots) for n, r in records.items()]
        charts.append(line_chart(title, series, percent=True, zero=False))
        ours[metric] = {name: r.curve(metric) for name, r in records.items() if r.curve(metric)}
    if not any(charts):
        return {}, []
    lead = "Over the steps of stage 2; the thick line of the reward is the mean of the last five steps."
    return ours, [Section("Ours", lead, [Grid(charts)]), _theirs(work)]


def _bars(work: Reproduction) -> tuple[dict, list[Section]]:
    colours, ours = _colours(work), {}
    for name, record in _records(work).items():
        values = [value for _, value in record.curve("reward_mean")][-LAST:]
        if values:
            ours[name] = mean_interval(values)
    titles = {arm.name: arm.title for arm in work.arms}
    short = {"sft_grpo": "GRPO", "sft_vold_unmasked": "unmasked", "sft_vold": "masked"}
    mine = [Bar(short.get(n, n), e.value, e.low, e.high, colours[n], titles[n]) for n, e in ours.items()]
    printed = [Bar(short.get(n, n), v, v, v, colours[n], titles[n]) for n, v in work.target.paper.items()]
    charts = [bar_chart("Ours", mine)] * bool(mine) + [bar_chart("The paper’s", printed)]
    lead = f"Mean reward of rollouts. Ours over the last {LAST} steps, with the interval over them; the paper prints one value."
    return ours, [Section("Reward at the end of training", lead, [Grid(charts)])]


def _lengths(work: Reproduction) -> tuple[dict, list[Section]]:
    results = accuracies(work)
    if results is None:
        return {}, []
    charts, ours = [], {}
    for kind in _sets(work, results):
        series = []
        for end, title in (("", "SFT"), ("_grpo", "SFT, GRPO"), ("_vold", "SFT, VOLD")):
            points = [(float(n), results.accuracy[f"sft_{n}{end}"][kind].value) for n in LENGTHS[work.scale]]
            series.append(Series(title, points, ARM_COLOURS[f"sft{end}"], dots=True))
            ours[f"{kind}: {title}"] = points
        charts.append(line_chart(title_of(kind), series, percent=True))
    return ours, [Section("Ours", "Accuracy over the steps of SFT.", [Grid(charts)])]
