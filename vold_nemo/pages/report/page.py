"""The report, section by section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vold_nemo.config import Config
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.evaluation.results import Accuracy, Results
from vold_nemo.pages import blocks, charts
from vold_nemo.pages.blocks import Cell, Details, Grid, Items, Section, Table, share, shown
from vold_nemo.pages.charts import Bar, Series, Stack
from vold_nemo.pages.render import now, render
from vold_nemo.pages.report.material import Material, RunRecord, gather
from vold_nemo.pages.report.verdict import CAVEATS, headline, label, sentences, title_of

KIND_TITLES = {"image": "Image questions (no stage trains on images)", "text": "Text questions"}

# metric, title, percent, moving average
CURVES = (
    ("reward_mean", "Reward of rollouts", True, 5),
    ("validation.image_accuracy", "Validation accuracy on images", True, 1),
    ("validation.text_accuracy", "Validation accuracy on text", True, 1),
    ("kl_mean", "KL to the teacher, per token", False, 5),
    ("masked_rate", "Rollouts without KL (reward mask)", True, 5),
    ("response_tokens.mean", "Response length, tokens", False, 5),
    ("entropy", "Entropy of the student, nats a token", False, 5),
)

# row title, place in a run's config.yaml
SETTINGS = (
    ("Steps", "vold.steps"), ("Prompts a step", "vold.prompts_per_step"), ("Rollouts a prompt K", "rollout.samples_per_prompt"),
    ("Updates a step", "vold.updates_per_step"), ("Learning rate", "vold.optimizer.learning_rate"),
    ("Policy gradient", "objective.policy.enabled"), ("Clip below", "objective.policy.clip_low"),
    ("Clip above", "objective.policy.clip_high"), ("KL to the teacher", "objective.kl.enabled"),
    ("KL estimator", "objective.kl.estimator"), ("KL mask", "objective.kl.mask"), ("β", "objective.kl.beta.value"),
    ("Temperature", "rollout.temperature"), ("Tensor parallel", "parallel.tensor"), ("Pipeline parallel", "parallel.pipeline"),
    ("Precision", "precision"), ("Seed", "seed"),
)  # fmt: skip


def write_report(config: Config) -> tuple[Path, Material]:
    """Write ``report.path`` whole or not at all; returns it with what it was made from."""
    material = gather(config)
    page, target = draw(config, material), Path(config.report.path)
    with writing("report.path", target):
        replace_text(target, page)
    return target, material


def draw(config: Config, material: Material) -> str:
    results, arms = material.results, list(material.results.accuracy)
    colours = charts.arm_colours([*arms, *(arm for arm in material.runs if arm not in arms)])
    lead = (
        "A vision-language student learns from a text-only teacher in two stages: first the teacher’s own traces (SFT), then "
        "its own attempts, with reward for right answers (GRPO) and, where an answer is wrong, a pull towards the teacher’s "
        "distribution (VOLD). No stage trains on an image."
    )
    lost = ["Missing from this page:", Items(material.missing, look="plain small")] if material.missing else []
    panels = [
        Items(config.report.differences, "Settings that differ from the paper’s"),
        Items(config.report.crutches, "What the miniature leans on"),
    ]
    sources = [[name, Cell(value, look="wide")] for name, value in material.provenance]
    method = "Method: VOLD (arXiv 2510.23497). Every answer behind these numbers is in answers/<arm>.jsonl beside results.json."
    sections = [
        accuracy(results, colours), examples(material, colours), curves(material, colours), time_spent(material),
        Section("What to keep in mind", "Nothing here is a benchmark of the paper’s models.", [Grid(panels)]),
        settings(material), Section("Provenance", method, [Table([], sources)]),
    ]  # fmt: skip
    return render(
        f"VOLD report: {config.name}", "Reasoning learned from text, asked about images", lead, sections,
        over=f"{config.name} · {now()}", headline=headline(results), sentences=sentences(results),
        notes=[" ".join(CAVEATS), *lost],
    )  # fmt: skip


def accuracy(results: Results, colours: dict[str, str]) -> Section:
    kinds = sorted(results.differences, key=lambda kind: ("image", "text").index(kind) if kind in KIND_TITLES else 2)
    drawn = []
    for kind in kinds:
        bars = [
            Bar(label(arm), e.value, e.low, e.high, colours[arm], f"{e.correct} of {e.n}")
            for arm, sets in results.accuracy.items()
            if (e := sets.get(kind))
        ]
        drawn.append(charts.bar_chart(KIND_TITLES.get(kind) or title_of(kind), bars))
    warm = any(e.sampled for sets in results.accuracy.values() for e in sets.values())
    head, rows = ["Model"], []
    for kind in kinds:
        head += [f"{kind.title()}, greedy", *([f"{kind.title()}, temperature 1"] if warm else [])]
    head += [f"{kind.title()}: unread / cut off / tokens" for kind in kinds]
    arms = [Cell(label(arm), colour=colours[arm]) for arm in results.accuracy]
    for arm, sets in zip(arms, results.accuracy.values(), strict=True):
        entries = [sets.get(kind) for kind in kinds]
        shares = [share(e) for entry in entries for e in ([entry, entry and entry.sampled] if warm else [entry])]
        rows.append([arm, *shares, *map(odd_ones, entries)])
    own = blocks.own_scores(list(results.accuracy.values()), kinds, title_of)
    tables = [
        Table(head, rows, range(1, len(head))),
        Table(["Benchmarks’ own scores", *arms], own, range(1, len(arms) + 1)),
        *paired(results, kinds),
    ]
    counts = ", ".join(f"{max(sets[k].n for sets in results.accuracy.values() if k in sets)} {k}" for k in kinds)
    lead = (
        f"Share of questions ({counts}) with the right boxed answer. Whiskers and small print are 95 % intervals (Wilson). "
        "An answer that cannot be read counts as wrong."
    )
    return Section("Accuracy", lead, [Grid(drawn), *tables])


def odd_ones(entry: Accuracy | None) -> str:
    """Answers without a box, answers that hit the length limit, mean length."""
    return f"{entry.no_answer} / {entry.truncated} / {entry.tokens_mean:.1f}" if entry else "–"


def paired(results: Results, kinds: list[str]) -> list[Details]:
    rows = [
        [blocks.minus(entry), kind, shown(entry), shown(entry.sampled) if entry.sampled else "not asked for",
         f"{entry.only_first} / {entry.only_second}", blocks.decided(entry)]
        for kind in kinds
        for entry in results.differences[kind]
    ]  # fmt: skip
    head = ["Difference", "Questions", "Greedy, paired", "Temperature 1, paired", "Only first / only second right", "At 5 %"]
    return [Details("All paired differences", [Table(head, rows)])] if rows else []


def examples(material: Material, colours: dict[str, str]) -> Section:
    cards = []
    for example in material.examples:
        answers = []
        for arm, row in example.answers.items():
            mark = "right" if row.right else "wrong" if row.extracted is not None else "no answer"
            answers.append(blocks.ShownAnswer(label(arm), colours[arm], row.right, mark, row.text))
        question = blocks.without_marks(example.question)
        cards.append(blocks.Card(f"Question {example.id}", question, example.truth, example.images, answers))
    lead = (
        "Image questions with each model’s greedy answer. Not picked by hand: the first ones, in the file’s order, on which "
        "the trained models are not all right or all wrong."
    )
    return Section("Side by side", lead, [Grid(cards, look="")])


def curves(material: Material, colours: dict[str, str]) -> Section:
    drawn = []
    for metric, title, percent, smooth in CURVES:
        series = [
            Series(label(arm), run.curve(metric), colours[arm], smooth, dots=smooth == 1)
            for arm, run in material.runs.items()
            if not (metric in ("kl_mean", "masked_rate") and setting(run, "objective.kl.enabled") is False)
        ]
        drawn.append(charts.line_chart(title, series, percent=percent, zero=not percent or metric == "masked_rate"))
    sft = {arm: run for arm, run in material.runs.items() if not run.curve("reward_mean")}
    losses = [Series(label(arm), run.curve("loss"), colours[arm], 5) for arm, run in sft.items()]
    drawn.append(charts.line_chart("Loss of stage 1, nats a token", losses))
    lead = (
        "Over training steps; the thick line is the mean of the last five steps. Steps of different arms may hold different "
        "numbers of prompts (see the settings below)."
    )
    return Section("While training", lead, [Grid(drawn, look="grid3")])


def time_spent(material: Material) -> Section:
    rows, scored = [], []
    colours = dict(charts.PHASE_COLOURS)
    for arm, run in material.runs.items():
        for phase in run.seconds():
            colours.setdefault(phase, charts.FURTHER[(len(colours) - len(charts.PHASE_COLOURS)) % len(charts.FURTHER)])
        if run.seconds():
            rows.append(Stack(label(arm), [(phase, seconds, colours[phase]) for phase, seconds in run.seconds().items()]))
        teacher = sum(value for _, value in run.curve("teacher_tokens"))
        masked = [value for _, value in run.curve("masked_rate")]
        if teacher and masked:
            scored.append(
                f"{label(arm)}: the teacher scored {teacher:,.0f} tokens; "
                f"the mask kept it from {sum(masked) / len(masked):.0%} of the rollouts."
            )
    body = charts.stacked_rows("Seconds by phase, whole run, rank 0", rows, part="{:.1f} s", total="{:,.0f} s")
    return Section("Where the time went", " ".join(scored) or "Measured around each phase, on the device.", [body])


def setting(run: RunRecord, dotted: str) -> Any:
    value: Any = run.config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def in_force(run: RunRecord, dotted: str) -> Any:
    """The setting, or None where the term it belongs to is switched off."""
    term = dotted.rsplit(".", 1)[0] if not dotted.startswith("objective.kl.beta") else "objective.kl"
    off = setting(run, f"{term}.enabled") is False and not dotted.endswith(".enabled")
    return None if off else setting(run, dotted)


def settings(material: Material) -> Section:
    stage2 = {arm: run for arm, run in material.runs.items() if run.config and run.curve("reward_mean")}
    rows = []
    for title, dotted in SETTINGS:
        values = [in_force(run, dotted) for run in stage2.values()]
        if any(value is not None for value in values):
            rows.append([title, *map(in_words, values)])
    whole = [
        Details(f"Whole configuration of {label(arm)}", yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
        for arm, run in material.runs.items()
        if run.config
    ]
    table = Table(["Stage 2", *map(label, stage2)], rows)
    return Section("Configuration", "As resolved when each run started.", [table, *whole])


def in_words(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else "–" if value is None else f"{value}"
