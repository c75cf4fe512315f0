"""``compare.html``: accuracies, paired differences, perception against reasoning, and the questions that flipped."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.data.prompts import Prompt
from vold_nemo.evaluation.pairs import Comparison, Model, compare, read_models
from vold_nemo.pages.charts import Bar, bar_chart
from vold_nemo.pages.report.material import embed_images
from vold_nemo.pages.report.page import box_marked, own_of, section, share, shown, table
from vold_nemo.pages.report.verdict import CAVEATS, evidence, label, tone_of
from vold_nemo.pages.style import ARM_COLOURS, CSS, FURTHER

WORDS = {"good": "better", "bad": "worse", "open": "not shown"}


def write_comparison(config: Config) -> tuple[Path, Comparison]:
    """Write ``compare.json`` and ``compare.html`` under ``compare.path``; returns the page's path and the numbers."""
    models = read_models(config.compare.results)
    found = compare(models)
    missing: list[str] = []
    prompts = _prompts(config, missing)
    folder = Path(config.compare.path)
    page = render(models, found, prompts, config.compare.examples, missing)
    with writing("compare.path", folder):
        replace_text(folder / "compare.json", json.dumps(found.to_json(), indent=1) + "\n")
        replace_text(folder / "compare.html", page)
    return folder / "compare.html", found


def _prompts(config: Config, missing: list[str]) -> dict[tuple[str, str], Prompt]:
    """The questions of ``evaluate.*``, for their images; without them the page says so."""
    from vold_nemo.evaluation.benchmark import load_questions

    if not (config.evaluate.benchmarks or config.evaluate.text or config.evaluate.image):
        missing.append("No questions are configured (evaluate.benchmarks, evaluate.image): images are not shown.")
        return {}
    try:
        questions = load_questions(config, writes=False)
    except ConfigError as error:
        missing.append(f"Images are not shown: {error.key} = {error.value}.")
        return {}
    return {(kind, prompt.id): prompt for kind, members in questions.items() for prompt in members}


def render(models: list[Model], found: Comparison, prompts: dict, examples: int, missing: list[str]) -> str:
    arms = [model.name.rpartition("/")[2] for model in models]
    own = len(set(arms)) == len(arms) and all(arm in ARM_COLOURS for arm in arms)
    colours = {
        m.name: ARM_COLOURS[arm] if own else FURTHER[i % len(FURTHER)]
        for i, (m, arm) in enumerate(zip(models, arms, strict=True))
    }
    parts = (
        _top(models, found, missing), _accuracies(models, found, colours), _pairs(found), _skills(found, colours),
        _flips(models, found, prompts, examples, colours),
    )  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>Comparison of {len(models)} models</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _top(models: list[Model], found: Comparison, missing: list[str]) -> str:
    last, before = models[-1], models[-2]
    says = []
    for kind, entries in found.pairs.items():
        entry = next((e for e in entries if (e.first, e.second) == (last.name, before.name)), entries[-1])
        tone = tone_of(entry)
        verb = {"good": "is better than", "bad": "is worse than", "open": "cannot be told from"}[tone]
        text = f"{kind}: {label(entry.first)} {verb} {label(entry.second)}."
        says.append(f'<li class="{tone}">{escape(text)}<span class="small">{escape(evidence(entry))}</span></li>')
    lost = [
        f"{name}: {n} questions that only one of the two answered are left out" for name, n in found.left_out.items()
    ]
    notes = "".join(f"<li>{escape(line)}</li>" for line in (*missing, *lost))
    return (
        f'<header><p class="over">{datetime.now(UTC):%d %B %Y, %H:%M} UTC</p><h1>{len(models)} models, the same questions</h1>'
        '<p class="lead">Greedy answers, compared question by question. A difference counts only if its paired bootstrap '
        "interval and McNemar’s exact test agree.</p></header>"
        f'<ul class="says">{"".join(says)}</ul><p class="small">{escape(" ".join(CAVEATS))}</p>'
        + (f'<ul class="plain small">{notes}</ul>' if notes else "")
    )


def _accuracies(models: list[Model], found: Comparison, colours: dict[str, str]) -> str:
    kinds = list(dict.fromkeys(kind for sets in found.models.values() for kind in sets))
    charts = []
    for kind in kinds[:4]:
        bars = [
            Bar(label(m.name.rpartition("/")[2]), e.value, e.low, e.high, colours[m.name], m.name)
            for m in models
            if (e := found.models[m.name].get(kind))
        ]
        charts.append(bar_chart(kind, bars))
    rows = []
    for m in models:
        sets = found.models[m.name]
        row = [_dotted(m.name, colours)]
        rows.append(
            row
            + [
                share(sets.get(kind)) + (f"<em>{sets[kind].unparsed} unread</em>" if kind in sets else "")
                for kind in kinds
            ]
        )
    own = []
    for kind in kinds:
        scores = {m.name: own_of(found.models[m.name], kind) for m in models}
        for name in next((score for score in scores.values() if score), {}):
            title = escape(f"{kind}: {name.replace('_', ' ')}")
            own.append([title, *(_number(scores[m.name].get(name)) for m in models)])
    body = f'<div class="grid2">{"".join(charts)}</div>' + table(
        ["Model", *map(escape, kinds)], rows, set(range(1, len(kinds) + 1))
    )
    if own:
        head = ["Benchmarks’ own scores", *(escape(label(m.name)) for m in models)]
        body += table(head, own, set(range(1, len(models) + 1)))
    return section(
        "Accuracy", "Whiskers and small print are 95 % intervals. An answer that cannot be read counts as wrong.", body
    )


def _dotted(name: str, colours: dict[str, str]) -> str:
    return f'<span class="dot" style="background:{colours[name]}"></span>{escape(label(name))}'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if 0 <= value <= 1 else f"{value:.4g}"


def _pairs(found: Comparison) -> str:
    rows = []
    for kind, entries in found.pairs.items():
        for entry in entries:
            tone = tone_of(entry)
            rows.append([
                f"{escape(label(entry.first))} − {escape(label(entry.second))}", escape(kind), shown(entry),
                f"{entry.only_first} / {entry.only_second}", str(entry.n),
                f'<span class="tone {tone}">{WORDS[tone]}</span>',
            ])  # fmt: skip
    head = ["Difference", "Questions", "Paired", "Wins / losses", "n", "At 5 %"]
    return section(
        "Differences",
        "First minus second, on the questions that both answered.",
        table(head, rows, {3, 4}) if rows else "",
    )


def _skills(found: Comparison, colours: dict[str, str]) -> str:
    rows = [
        [_dotted(name, colours), share(s.get("perception")), share(s.get("reasoning"))]
        for name, s in found.skills.items()
        if s
    ]
    pairs = [
        [f"{escape(label(e.first))} − {escape(label(e.second))}", e.skill, shown(e),
         f'<span class="tone {tone_of(e)}">{WORDS[tone_of(e)]}</span>']
        for e in found.skill_pairs
    ]  # fmt: skip
    body = table(["Model", "Perception", "Reasoning"], rows, {1, 2}) if rows else ""
    body += table(["Difference", "Skill", "Paired", "At 5 %"], pairs) if pairs else ""
    lead = "Where the benchmark names the skill that a question asks for: MMStar, and MME’s two halves (the paper’s table 6)."
    return section("Perception against reasoning", lead, body)


def _flips(models: list[Model], found: Comparison, prompts: dict, examples: int, colours: dict[str, str]) -> str:
    """The first questions, in the file's order, that the last model won from or lost to the one before it."""
    last, before = models[-1], models[-2]
    blocks = []
    for kind, entries in found.pairs.items():
        entry = next((e for e in entries if (e.first, e.second) == (last.name, before.name)), None)
        if entry is None:
            continue
        cards_shown = ""
        for title, names in (("Won", entry.wins), ("Lost", entry.losses)):
            cards = "".join(_card(kind, name, models, prompts.get((kind, name)), colours) for name in names[:examples])
            state = " open" if title == "Won" else ""
            cards_shown += f"<details{state}><summary>{title}: {len(names)} questions</summary>{cards}</details>"
        blocks.append(f"<h2>{escape(kind)}: what flipped</h2>"
                      f'<p class="lead">{escape(label(last.name))} against {escape(label(before.name))}; the first '
                      f"{examples} of each kind in the file’s order.</p>{cards_shown}")  # fmt: skip
    return "".join(blocks)


def _card(kind: str, name: str, models: list[Model], prompt: Prompt | None, colours: dict[str, str]) -> str:
    rows = {m.name: m.answers[kind][name] for m in models if name in m.answers.get(kind, {})}
    any_row = next(iter(rows.values()))
    pictures = embed_images(prompt) if prompt is not None else []
    images = "".join(
        f'<img{"" if len(source) < 20_000 else " class=large"} src="{source}" alt="image {i + 1} of the question">'
        for i, source in enumerate(pictures)
    )
    cells = "".join(
        f'<div class="answer" style="border-top-color:{colours[model]}"><header><span>{escape(label(model))}</span>'
        f'<span class="{"right" if row.reward == 1 else "wrong"}">{"✓" if row.reward == 1 else "✗"} '
        f"{escape(str(row.extracted)[:40]) if row.extracted is not None else 'no answer'}</span></header>"
        f"<pre>{box_marked(row.text, row.reward == 1)}</pre></div>"
        for model, row in rows.items()
    )
    question = re.sub(r"▢[▢ ]*", "", any_row.question).strip()
    return (
        f'<div class="example"><div class="cards">{images}</div><p class="small">{escape(name)}: “{escape(question[:1200])}” '
        f'Right answer: <b>{escape(str(any_row.truth))}</b></p><div class="answers">{cells}</div></div>'
    )
