"""The report, section by section: each function returns the HTML of one, or nothing if there is nothing to show."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import yaml

from vold_nemo.config import Config
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.evaluation.pairs import SetAccuracy
from vold_nemo.evaluation.results import Accuracy, Results
from vold_nemo.evaluation.statistics import Difference, Estimate
from vold_nemo.pages.charts import Bar, Series, Stack, bar_chart, line_chart, stacked_rows
from vold_nemo.pages.report.material import Material, RunRecord, gather
from vold_nemo.pages.report.verdict import CAVEATS, evidence, headline, label, sentences, tone_of
from vold_nemo.pages.style import CSS, FURTHER, PHASE_COLOURS, arm_colour

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
    page = render(config, material)
    target = Path(config.report.path)
    with writing("report.path", target):
        replace_text(target, page)
    return target, material


def render(config: Config, material: Material) -> str:
    arms = list(material.results.accuracy)
    colours = {arm: arm_colour(arm, i) for i, arm in enumerate([*arms, *(a for a in material.runs if a not in arms)])}
    parts = (
        top(config, material), accuracy(material.results, colours), examples(material, colours),
        curves(material, colours), time_spent(material), differences(config), settings(material), sources(material),
    )  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>VOLD report: {escape(config.name)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def top(config: Config, material: Material) -> str:
    results, first = material.results, headline(material.results)
    says = "".join(
        f'<li class="{s.tone}">{escape(s.text)}<span class="small">{escape(s.detail)}</span></li>'
        for s in sentences(results)
    )
    lost = "".join(f"<li>{escape(line)}</li>" for line in material.missing)
    lost = f'<p class="small">Missing from this page:</p><ul class="plain small">{lost}</ul>' if lost else ""
    return (
        f'<header><p class="over">{escape(config.name)} · {datetime.now(UTC):%d %B %Y, %H:%M} UTC</p>'
        "<h1>Reasoning learned from text, asked about images</h1>"
        '<p class="lead">A vision-language student learns from a text-only teacher in two stages: first the teacher’s own '
        "traces (SFT), then its own attempts, with reward for right answers (GRPO) and, where an answer is wrong, a pull "
        "towards the teacher’s distribution (VOLD). No stage trains on an image.</p></header>"
        f'<section class="verdict {first.tone}"><strong>{escape(first.text)}</strong></section>'
        f'<ul class="says">{says}</ul><p class="small">{escape(" ".join(CAVEATS))}</p>{lost}'
    )


def section(title: str, lead: str, body: str) -> str:
    return f'<h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{body}' if body else ""


def table(head: list[str], rows: list[list[str]], numeric: set[int] = frozenset()) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' if i in numeric else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def named(arm: str, colours: dict[str, str]) -> str:
    return f'<span class="dot" style="background:{colours[arm]}"></span>{escape(label(arm))}'


def accuracy(results: Results, colours: dict[str, str]) -> str:
    kinds = sorted(results.differences, key=lambda kind: ("image", "text").index(kind) if kind in KIND_TITLES else 2)
    charts = []
    for kind in kinds:
        bars = [
            Bar(label(arm), e.value, e.low, e.high, colours[arm], f"{e.correct} of {e.n}")
            for arm, by_kind in results.accuracy.items()
            if (e := by_kind.get(kind))
        ]
        charts.append(bar_chart(KIND_TITLES.get(kind) or title_of(kind), bars))
    warm = any(e.sampled for by_kind in results.accuracy.values() for e in by_kind.values())
    head, rows = ["Model"], []
    for kind in kinds:
        head += [f"{kind.title()}, greedy", *([f"{kind.title()}, temperature 1"] if warm else [])]
    head += [f"{kind.title()}: unread / cut off / tokens" for kind in kinds]
    for arm, by_kind in results.accuracy.items():
        row = [named(arm, colours)]
        for kind in kinds:
            e = by_kind.get(kind)
            row += [share(e), *([share(e and e.sampled)] if warm else [])]
        row += [odd_ones(by_kind.get(kind)) for kind in kinds]
        rows.append(row)
    body = (
        f'<div class="grid2">{"".join(charts)}</div>'
        + table(head, rows, set(range(1, len(head))))
        + own_scores(results, kinds, colours)
        + paired(results, kinds)
    )
    counts = ", ".join(f"{max(b[k].n for b in results.accuracy.values() if k in b)} {k}" for k in kinds)
    lead = (
        f"Share of questions ({counts}) with the right boxed answer. Whiskers and small print are 95 % intervals (Wilson). "
        "An answer that cannot be read counts as wrong."
    )
    return section("Accuracy", lead, body)


def title_of(kind: str) -> str:
    """A benchmark's own name; the set's, if it is none."""
    from vold_nemo.evaluation.benchmarks.table import BENCHMARKS

    return BENCHMARKS[kind].title if kind in BENCHMARKS else kind


def own_scores(results: Results, kinds: list[str], colours: dict[str, str]) -> str:
    """Scores that a benchmark defines over groups of questions (We-Math, DynaMath, MME, MMStar)."""
    arms, rows = list(results.accuracy), []
    for kind in kinds:
        scores = {arm: own_of(results.accuracy[arm], kind) for arm in arms}
        for name in next((found for found in scores.values() if found), {}):
            values = [scores[arm].get(name) for arm in arms]
            title = escape(f"{title_of(kind)}: {name.replace('_', ' ')}")
            rows.append([title, *("–" if v is None else f"{v:.1%}" if 0 <= v <= 1 else f"{v:.4g}" for v in values)])
    head = ["Benchmarks’ own scores", *(named(arm, colours) for arm in arms)]
    return table(head, rows, set(range(1, len(head)))) if rows else ""


def own_of(sets: dict[str, Accuracy] | dict[str, SetAccuracy], kind: str) -> dict[str, float]:
    return sets[kind].own if kind in sets else {}


def odd_ones(entry: Accuracy | None) -> str:
    """Answers without a box, answers that hit the length limit, mean length."""
    return f"{entry.no_answer} / {entry.truncated} / {entry.tokens_mean:.1f}" if entry else "–"


def share(estimate: Estimate | None) -> str:
    if not estimate:
        return "–"
    return f"{estimate.value:.1%}<em>{estimate.low:.1%} to {estimate.high:.1%}</em>"


def shown(entry: Difference) -> str:
    """A difference with its evidence, as a cell that stays readable on a phone."""
    return f'<span class="evidence">{escape(evidence(entry))}</span>'


def paired(results: Results, kinds: list[str]) -> str:
    words = {"good": "better", "bad": "worse", "open": "not shown"}
    rows = []
    for kind in kinds:
        for entry in results.differences[kind]:
            tone = tone_of(entry)
            warm = shown(entry.sampled) if entry.sampled else "not asked for"
            rows.append([
                f"{escape(label(entry.first))} − {escape(label(entry.second))}", kind, shown(entry),
                warm, f"{entry.only_first} / {entry.only_second}",
                f'<span class="tone {tone}">{words[tone]}</span>',
            ])  # fmt: skip
    if not rows:
        return ""
    head = [
        "Difference",
        "Questions",
        "Greedy, paired",
        "Temperature 1, paired",
        "Only first / only second right",
        "At 5 %",
    ]
    return f"<details><summary>All paired differences</summary>{table(head, rows)}</details>"


def examples(material: Material, colours: dict[str, str]) -> str:
    blocks = []
    for example in material.examples:
        images = "".join(
            f'<img{"" if len(source) < 20_000 else " class=large"} src="{source}" alt="image {i + 1} of the question">'
            for i, source in enumerate(example.images)
        )
        cells = []
        for arm, row in example.answers.items():
            right = row.reward == 1
            mark = "right" if right else "wrong" if row.extracted is not None else "no answer"
            cells.append(
                f'<div class="answer" style="border-top-color:{colours[arm]}"><header><span>{escape(label(arm))}</span>'
                f'<span class="{"right" if right else "wrong"}">{"✓" if right else "✗"} {mark}</span></header>'
                f"<pre>{box_marked(row.text, right)}</pre></div>"
            )
        question = re.sub(r"▢[▢ ]*", "", example.question).strip()
        blocks.append(
            f'<div class="example"><div class="cards">{images}</div><p class="small">Question {escape(example.id)}: '
            f"“{escape(question)}” Right answer: <b>{escape(example.truth)}</b></p>"
            f'<div class="answers">{"".join(cells)}</div></div>'
        )
    lead = (
        "Image questions with each model’s greedy answer. Not picked by hand: the first ones, in the file’s order, on which "
        "the trained models are not all right or all wrong."
    )
    return section("Side by side", lead, "".join(blocks))


def box_marked(text: str, right: bool) -> str:
    """The answer, its boxes in colour; long ones keep their end, where the answer stands."""
    text = text if len(text) <= 1500 else "… " + text[-1500:]
    mark = "right" if right else "wrong"
    return re.sub(r"\\boxed\{[^{}]*\}", lambda box: f'<b class="{mark}">{box.group()}</b>', escape(text))


def curves(material: Material, colours: dict[str, str]) -> str:
    charts = []
    for metric, title, percent, smooth in CURVES:
        series = [
            Series(label(arm), run.curve(metric), colours[arm], smooth, dots=smooth == 1)
            for arm, run in material.runs.items()
            if not (metric in ("kl_mean", "masked_rate") and setting(run, "objective.kl.enabled") is False)
        ]
        charts.append(line_chart(title, series, percent=percent, zero=not percent or metric == "masked_rate"))
    sft = [
        Series(label(a), r.curve("loss"), colours[a], 5) for a, r in material.runs.items() if not r.curve("reward_mean")
    ]
    charts.append(line_chart("Loss of stage 1, nats a token", sft))
    charts = [chart for chart in charts if chart]
    lead = (
        "Over training steps; the thick line is the mean of the last five steps. Steps of different arms may hold different "
        "numbers of prompts (see the settings below)."
    )
    return section("While training", lead, f'<div class="grid3">{"".join(charts)}</div>' if charts else "")


def time_spent(material: Material) -> str:
    rows = []
    spare: dict[str, str] = {}
    for arm, run in material.runs.items():
        parts = []
        for phase, seconds in run.seconds().items():
            if phase not in PHASE_COLOURS and phase not in spare:
                spare[phase] = FURTHER[len(spare) % len(FURTHER)]
            parts.append((phase, seconds, PHASE_COLOURS.get(phase) or spare[phase]))
        if parts:
            rows.append(Stack(label(arm), parts))
    body = stacked_rows("Seconds by phase, whole run, rank 0", rows, "s")
    scored = []
    for arm, run in material.runs.items():
        teacher = sum(value for _, value in run.curve("teacher_tokens"))
        if teacher:
            masked = [value for _, value in run.curve("masked_rate")]
            scored.append(
                f"{label(arm)}: the teacher scored {teacher:,.0f} tokens; "
                f"the mask kept it from {sum(masked) / len(masked):.0%} of the rollouts."
            )
    return section("Where the time went", " ".join(scored) or "Measured around each phase, on the device.", body)


def differences(config: Config) -> str:
    def panel(title: str, items: list[str]) -> str:
        listed = "".join(f"<li>{escape(item)}</li>" for item in items)
        return (
            f'<div class="panel"><figcaption>{escape(title)}</figcaption><ul class="plain">{listed}</ul></div>'
            if items
            else ""
        )

    body = panel("Settings that differ from the paper’s", config.report.differences)
    body += panel("What the miniature leans on", config.report.crutches)
    lead = "Nothing here is a benchmark of the paper’s models."
    return section("What to keep in mind", lead, f'<div class="grid2">{body}</div>' if body else "")


def setting(run: RunRecord, dotted: str):
    value = run.config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def in_force(run: RunRecord, dotted: str):
    """The setting, or None where the term it belongs to is switched off."""
    term = dotted.rsplit(".", 1)[0] if not dotted.startswith("objective.kl.beta") else "objective.kl"
    off = setting(run, f"{term}.enabled") is False and not dotted.endswith(".enabled")
    return None if off else setting(run, dotted)


def settings(material: Material) -> str:
    stage2 = {arm: run for arm, run in material.runs.items() if run.config and run.curve("reward_mean")}
    rows = []
    for title, dotted in SETTINGS:
        values = [in_force(run, dotted) for run in stage2.values()]
        if any(value is not None for value in values):
            rows.append(
                [
                    title,
                    *(
                        "yes" if v is True else "no" if v is False else "–" if v is None else escape(f"{v}")
                        for v in values
                    ),
                ]
            )
    body = table(["Stage 2", *(escape(label(arm)) for arm in stage2)], rows) if rows else ""
    for arm, run in material.runs.items():
        if run.config:
            text = escape(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
            body += (
                f"<details><summary>Whole configuration of {escape(label(arm))}</summary><pre>{text}</pre></details>"
            )
    return section("Configuration", "As resolved when each run started.", body)


def sources(material: Material) -> str:
    rows = [[escape(name), f'<span class="wide">{escape(value)}</span>'] for name, value in material.provenance]
    lead = "Method: VOLD (arXiv 2510.23497). Every answer behind these numbers is in answers/<arm>.jsonl beside results.json."
    return section("Provenance", lead, table(["", ""], rows).replace("<thead><tr><th></th><th></th></tr></thead>", ""))
