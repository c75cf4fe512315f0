"""``compare.html``: accuracies, paired differences, perception against reasoning, and the questions that flipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.data.prompts import Prompt
from vold_nemo.evaluation.pairs import Comparison, Model, Pair, compare, read_models
from vold_nemo.pages import blocks
from vold_nemo.pages.blocks import Cell, Details, Grid, Items, Section, Table, decided, minus, share, shown
from vold_nemo.pages.charts import ARM_COLOURS, FURTHER, Bar, bar_chart
from vold_nemo.pages.render import now, render
from vold_nemo.pages.report.verdict import CAVEATS, Sentence, evidence, label, tone_of, verdict


def write_comparison(config: Config) -> tuple[Path, Comparison]:
    """Write ``compare.json`` and ``compare.html`` under ``compare.path``; returns the page's path and the numbers."""
    models = read_models(config.compare.results)
    found = compare(models)
    missing: list[str] = []
    prompts = _prompts(config, missing)
    folder = Path(config.compare.path)
    page = draw(models, found, prompts, config.compare.examples, missing)
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
        questions = load_questions(config)
    except ConfigError as error:
        missing.append(f"Images are not shown: {error.key} = {error.value}.")
        return {}
    return {(kind, prompt.id): prompt for kind, members in questions.items() for prompt in members}


def draw(models: list[Model], found: Comparison, prompts: dict, examples: int, missing: list[str]) -> str:
    arms = [model.name.rpartition("/")[2] for model in models]
    own = len(set(arms)) == len(arms) and set(arms) <= set(ARM_COLOURS)
    shades = [ARM_COLOURS[arm] if own else FURTHER[i % len(FURTHER)] for i, arm in enumerate(arms)]
    colours = {model.name: shade for model, shade in zip(models, shades, strict=True)}
    lost = [f"{name}: {n} questions that only one of the two answered are left out" for name, n in found.left_out.items()]
    lost += [f"{name}: {n} questions showed other pixels (decoded otherwise)" for name, n in found.other_pixels.items()]
    lead = (
        "Greedy answers, compared question by question. A difference counts only if its paired bootstrap interval and "
        "McNemar’s exact test agree."
    )
    flips = _flips(models, found, prompts, examples, colours)
    return render(
        f"Comparison of {len(models)} models", f"{len(models)} models, the same questions", lead,
        [_accuracies(found, colours), _pairs(found), _skills(found, colours), *flips], over=now(),
        sentences=_says(models, found), notes=[" ".join(CAVEATS), Items([*missing, *lost], look="plain small")],
    )  # fmt: skip


def _last_pair(models: list[Model], entries: list[Pair]) -> Pair | None:
    """The last model against the one before it."""
    names = (models[-1].name, models[-2].name)
    return next((entry for entry in entries if (entry.first, entry.second) == names), None)


def _says(models: list[Model], found: Comparison) -> list[Sentence]:
    last = {kind: _last_pair(models, entries) or entries[-1] for kind, entries in found.pairs.items()}
    return [Sentence(f"{kind}: {verdict(entry)}.", tone_of(entry), evidence(entry)) for kind, entry in last.items()]


def _accuracies(found: Comparison, colours: dict[str, str]) -> Section:
    kinds = list(dict.fromkeys(kind for sets in found.models.values() for kind in sets))
    charts = []
    for kind in kinds[:4]:
        bars = [
            Bar(label(name.rpartition("/")[2]), e.value, e.low, e.high, colours[name], name)
            for name, sets in found.models.items()
            if (e := sets.get(kind))
        ]
        charts.append(bar_chart(kind, bars))
    rows = []
    for name, sets in found.models.items():
        cells = [share(e, f"{e.unparsed} unread") if e else share(None) for e in map(sets.get, kinds)]
        rows.append([Cell(label(name), colour=colours[name]), *cells])
    own = blocks.own_scores(list(found.models.values()), kinds, str)
    head = ["Benchmarks’ own scores", *map(label, found.models)]
    return Section(
        "Accuracy", "Whiskers and small print are 95 % intervals. An answer that cannot be read counts as wrong.",
        [Grid(charts), Table(["Model", *kinds], rows, range(1, len(kinds) + 1)), Table(head, own, range(1, len(head)))],
    )  # fmt: skip


def _pairs(found: Comparison) -> Section:
    rows = [
        [minus(entry), kind, shown(entry), f"{entry.only_first} / {entry.only_second}", str(entry.n), decided(entry)]
        for kind, entries in found.pairs.items()
        for entry in entries
    ]
    table = Table(["Difference", "Questions", "Paired", "Wins / losses", "n", "At 5 %"], rows, {3, 4})
    return Section("Differences", "First minus second, on the questions that both answered.", [table])


def _skills(found: Comparison, colours: dict[str, str]) -> Section:
    rows = [
        [Cell(label(name), colour=colours[name]), share(skills.get("perception")), share(skills.get("reasoning"))]
        for name, skills in found.skills.items()
        if skills
    ]
    table = Table(["Model", "Perception", "Reasoning"], rows, {1, 2})
    pairs = [[minus(entry), entry.skill, shown(entry), decided(entry)] for entry in found.skill_pairs]
    lead = "Where the benchmark names the skill that a question asks for: MMStar, and MME’s two halves (the paper’s table 6)."
    return Section("Perception against reasoning", lead, [table, Table(["Difference", "Skill", "Paired", "At 5 %"], pairs)])


def _flips(
    models: list[Model], found: Comparison, prompts: dict, examples: int, colours: dict[str, str]
) -> Iterator[Section]:
    """The first questions, in the file's order, that the last model won from or lost to the one before it."""
    lead = f"{label(models[-1].name)} against {label(models[-2].name)}; the first {examples} of each kind in the file’s order."
    for kind, entries in found.pairs.items():
        entry = _last_pair(models, entries)
        if entry is not None:
            sides = []
            for title, names in (("Won", entry.wins), ("Lost", entry.losses)):
                cards = [_card(kind, name, models, prompts.get((kind, name)), colours) for name in names[:examples]]
                sides.append(Details(f"{title}: {len(names)} questions", cards, opened=title == "Won"))
            yield Section(f"{kind}: what flipped", lead, sides)


def _card(kind: str, name: str, models: list[Model], prompt: Prompt | None, colours: dict[str, str]) -> blocks.Card:
    rows = {m.name: m.answers[kind][name] for m in models if name in m.answers.get(kind, {})}
    answers = []
    for model, row in rows.items():
        mark = "no answer" if row.extracted is None else row.extracted[:40]
        answers.append(blocks.ShownAnswer(label(model), colours[model], row.right, mark, row.text))
    any_row = next(iter(rows.values()))
    pictures = blocks.embed_images(prompt) if prompt is not None else []
    return blocks.Card(name, blocks.without_marks(any_row.question)[:1200], str(any_row.truth), pictures, answers)
