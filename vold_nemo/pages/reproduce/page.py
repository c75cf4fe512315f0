"""One page a target: the paper's table or figure beside ours, and whose each number is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from vold_nemo.config.writing import replace_text, writing
from vold_nemo.evaluation.records import plain
from vold_nemo.evaluation.statistics import mean_interval
from vold_nemo.pages.charts import Bar, Series, bar_chart, line_chart
from vold_nemo.pages.report.material import RunRecord, read_run
from vold_nemo.pages.report.page import own_of, section, share, shown, table, title_of
from vold_nemo.pages.report.verdict import CAVEATS, label, tone_of
from vold_nemo.pages.reproduce.targets import LENGTHS
from vold_nemo.pages.reproduce.work import Plan, accuracies
from vold_nemo.pages.style import ARM_COLOURS, CSS, FURTHER

LAST = 10  # steps at the end of training over which a final reward is averaged
WHOSE = {
    "miniature": "Theirs: a Qwen2.5-VL-3B student on public benchmarks. Ours: the miniature, a student of a million "
    "parameters that calculates modulo 10. Only the order of the rows can be compared, never the values.",
    "paper": "Theirs: as printed, answers read by a GPT-4o-mini judge under VLMEvalKit. Ours: this "
    "repository’s run, scored by rules.",
}


def write_page(plan: Plan, folder: Path) -> tuple[Path, dict]:
    """``<folder>/<target>.html`` and ``<target>.json`` with our numbers, the paper's, and what is missing."""
    missing = [f"{arm.name}: {arm.title}" for arm in plan.missing()]
    ours, body = _draw(plan)
    target = plan.target
    found = {
        "target": target.name,
        "scale": plan.scale,
        "ours": plain(ours),
        "paper": target.paper,
        "claim": target.claim,
        "missing": missing,
    }
    note = f'<p class="small">{escape(target.note[plan.scale])}</p>' if plan.scale in target.note else ""
    lost = "".join(f"<li>{escape(line)}</li>" for line in missing)
    lost = f'<h2>Not made yet</h2><ul class="plain">{lost}</ul>' if lost else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(target.name)}: {escape(target.title)}</title><style>{CSS}</style></head><body><main>"
        f'<header><p class="over">{escape(target.name)} · {plan.scale} · {datetime.now(UTC):%d %B %Y}</p>'
        f"<h1>{escape(target.title)}</h1>"
        f'<p class="lead">The paper’s claim: {escape(target.claim)}</p></header>{body}{note}'
        f'<p class="small">{escape(WHOSE[plan.scale])} {escape(" ".join(CAVEATS))}</p>{lost}</main></body></html>\n'
    )
    with writing("reproduce.path", folder):
        replace_text(folder / f"{target.name}.html", page)
        replace_text(folder / f"{target.name}.json", json.dumps(found, indent=1) + "\n")
    return folder / f"{target.name}.html", found


def _draw(plan: Plan) -> tuple[dict, str]:
    return {"table": _table, "curves": _curves, "bars": _bars, "lengths": _lengths}[plan.target.kind](plan)


def _dot(arm: str, colours: dict[str, str], title: str) -> str:
    return f'<span class="dot" style="background:{colours[arm]}"></span>{escape(title)}'


def _colours(plan: Plan) -> dict[str, str]:
    return {arm.name: ARM_COLOURS.get(arm.name, FURTHER[i % len(FURTHER)]) for i, arm in enumerate(plan.arms)}


def _theirs(plan: Plan, colours: dict[str, str]) -> str:
    columns = list(next(iter(plan.target.paper.values()))) if plan.target.paper else []
    if not columns:
        return section(
            "The paper’s", "The paper prints no numbers here that could be set beside ours; its claim is above.", " "
        )
    arms = [arm for arm in plan.arms if arm.name in plan.target.paper]
    rows = [[escape(_column(c)), *(f"{plan.target.paper[arm.name][c]:.1f}" for arm in arms)] for c in columns]
    return section(
        "The paper’s numbers",
        "As printed (arXiv 2510.23497), percent unless the benchmark has a score of its own.",
        _table_of(plan, colours, arms, rows),
    )


def _column(name: str) -> str:
    kind, colon, score = name.partition(": ")
    return f"{title_of(kind)}{colon}{score}"


def _table_of(plan: Plan, colours: dict[str, str], arms: list, rows: list[list[str]]) -> str:
    head = ["", *(_dot(arm.name, colours, arm.title) for arm in arms)]
    return table(head, rows, set(range(1, len(head))))


def _table(plan: Plan) -> tuple[dict, str]:
    colours, results = _colours(plan), accuracies(plan)
    theirs = _theirs(plan, colours)
    if results is None:
        return {}, theirs
    arms = [arm.name for arm in plan.arms]
    sets = [kind for kind in results.differences if plan.scale == "miniature" or kind in plan.target.sets]
    ours = {
        arm: {kind: results.accuracy[arm][kind] for kind in sets if kind in results.accuracy[arm]} for arm in arms
    }
    rows = [[escape(title_of(kind)), *(share(ours[arm].get(kind)) for arm in arms)] for kind in sets]
    for kind in sets:
        scores = {arm: own_of(ours[arm], kind) for arm in arms}
        for name in next((found for found in scores.values() if found), {}):
            cells = (
                "–" if (v := scores[arm].get(name)) is None else f"{v:.1%}" if 0 <= v <= 1 else f"{v:.4g}"
                for arm in arms
            )
            rows.append([escape(f"{title_of(kind)}: {name.replace('_', ' ')}"), *cells])
    body = _table_of(plan, colours, plan.arms, rows)
    pairs = []
    for first, second in zip(arms[1:], arms, strict=False):
        for kind in sets:
            entry = results.difference(kind, first, second)
            if entry is not None:
                tone = tone_of(entry)
                word = {"good": "better", "bad": "worse", "open": "not shown"}[tone]
                pairs.append(
                    [
                        f"{escape(label(first))} − {escape(label(second))}",
                        escape(kind),
                        shown(entry),
                        f'<span class="tone {tone}">{word}</span>',
                    ]
                )
    body += table(["Difference", "Questions", "Paired", "At 5 %"], pairs) if pairs else ""
    return ours, section(
        "Our numbers", "Greedy accuracy with 95 % intervals; each arm is compared with the one before it.", body
    ) + theirs


def _records(plan: Plan) -> dict[str, RunRecord]:
    found = {arm.name: read_run(arm.name, plan.run_of(arm), []) for arm in plan.arms}
    return {name: record for name, record in found.items() if record.rows}


def _curves(plan: Plan) -> tuple[dict, str]:
    colours, records = _colours(plan), _records(plan)
    titles = {arm.name: arm.title for arm in plan.arms}
    charts, ours = [], {}
    for metric, title, dots in (
        ("reward_mean", "Reward of rollouts on text", False),
        ("validation.image_accuracy", "Validation accuracy on images", True),
    ):
        series = [
            Series(titles[name], r.curve(metric), colours[name], 1 if dots else 5, dots) for name, r in records.items()
        ]
        charts.append(line_chart(title, series, percent=True, zero=False))
        ours[metric] = {name: r.curve(metric) for name, r in records.items() if r.curve(metric)}
    if not any(charts):
        return {}, ""
    lead = "Over the steps of stage 2; the thick line of the reward is the mean of the last five steps."
    return ours, section("Ours", lead, f'<div class="grid2">{"".join(charts)}</div>') + _theirs(plan, colours)


def _bars(plan: Plan) -> tuple[dict, str]:
    colours, records = _colours(plan), _records(plan)
    ours = {}
    for name, record in records.items():
        values = [value for _, value in record.curve("reward_mean")][-LAST:]
        if values:
            ours[name] = mean_interval(values)
    titles = {arm.name: arm.title for arm in plan.arms}
    short = {"sft_grpo": "GRPO", "sft_vold_unmasked": "unmasked", "sft_vold": "masked"}
    mine = [Bar(short.get(n, n), e.value, e.low, e.high, colours[n], titles[n]) for n, e in ours.items()]
    printed = [Bar(short.get(n, n), v, v, v, colours[n], titles[n]) for n, v in plan.target.paper.items()]
    charts = bar_chart("Ours", mine) if mine else ""
    charts += bar_chart("The paper’s", printed)
    lead = f"Mean reward of rollouts. Ours over the last {LAST} steps, with the interval over them; the paper prints one value."
    return ours, section("Reward at the end of training", lead, f'<div class="grid2">{charts}</div>')


def _lengths(plan: Plan) -> tuple[dict, str]:
    results = accuracies(plan)
    if results is None:
        return {}, ""
    sets = [kind for kind in results.differences if plan.scale == "miniature" or kind in plan.target.sets]
    charts, ours = [], {}
    for kind in sets:
        series = []
        for end, title, colour in (
            ("", "SFT", "sft"),
            ("_grpo", "SFT, GRPO", "sft_grpo"),
            ("_vold", "SFT, VOLD", "sft_vold"),
        ):
            points = [(float(n), results.accuracy[f"sft_{n}{end}"][kind].value) for n in LENGTHS[plan.scale]]
            series.append(Series(title, points, ARM_COLOURS[colour], dots=True))
            ours[f"{kind}: {title}"] = points
        charts.append(line_chart(title_of(kind), series, percent=True))
    return ours, section("Ours", "Accuracy over the steps of SFT.", f'<div class="grid2">{"".join(charts)}</div>')
