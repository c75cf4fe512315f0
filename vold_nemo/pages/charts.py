"""Charts as SVG and HTML text.  Colours and letters come from the page's style sheet, so light and dark need no second drawing.

Every element is made by :func:`element`, which escapes what it is given: labels may hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]

ARM_COLOURS = {"base": "var(--base)", "sft": "var(--sft)", "sft_grpo": "var(--grpo)", "sft_vold": "var(--vold)"}
FURTHER = ("var(--c5)", "var(--c6)", "var(--c7)", "var(--c8)")

PHASE_COLOURS = {
    "generate": "var(--vold)", "reward": "var(--c5)", "teacher": "var(--grpo)", "train": "var(--sft)",
    "sync": "var(--c6)", "validate": "var(--c7)", "data": "var(--base)",
}  # fmt: skip


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """The four arms of the paper have colours of their own."""
    return {arm: ARM_COLOURS.get(arm, FURTHER[place % len(FURTHER)]) for place, arm in enumerate(arms)}


@dataclass
class Series:
    """``colour`` is a CSS value; with ``smooth`` the points are drawn faintly under their moving average."""

    label: str
    points: list[Point]
    colour: str
    smooth: int = 1
    dots: bool = False


@dataclass
class Bar:
    """A value in [0, 1] with its interval."""

    label: str
    value: float
    low: float
    high: float
    colour: str
    note: str = ""


@dataclass
class Stack:
    """A row of parts: (label, amount, CSS colour)."""

    label: str
    parts: list[tuple[str, float, str]]


def element(name: str, *inside: str, **attributes: str | float) -> Markup:
    """``<name attributes>inside</name>``, all of it escaped but Markup.  ``class_`` is class, ``stroke_width`` stroke-width."""
    said = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value)
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, said, Markup("").join(inside))


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers that span [low, high]."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short: 12k, 350, 0.25, 3e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.0e}" if abs(value) < 1e-3 else f"{value:.4g}"


def moving_average(points: Sequence[Point], window: int) -> list[Point]:
    """Each value becomes the mean of the last ``window`` ones."""
    parts = [points[max(0, i - window + 1) : i + 1] for i in range(len(points))]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def line_chart(title: str, series: Sequence[Series], *, percent: bool = False, zero: bool = True) -> Markup:
    """Lines over training steps."""
    width, height, left, right, top, bottom = 330, 205, 40, 10, 10, 28
    shown = [s for s in series if s.points]
    if not shown:
        return Markup("")
    xs, ys = zip(*(point for s in shown for point in s.points), strict=True)
    ticks = nice_ticks(min([*ys, 0.0] if zero else ys), max(ys))
    low, high = ticks[0], ticks[-1]
    x0, x1 = min(xs), max(xs)

    def say(value: float) -> str:
        return f"{value:.1%}" if percent else number(value)

    def at(point: Point) -> tuple[float, float]:
        x = left + (width - left - right) * ((point[0] - x0) / (x1 - x0) if x1 > x0 else 0.5)
        return x, top + (height - top - bottom) * (1 - (point[1] - low) / (high - low))

    def path(points: Sequence[Point], *inside: Markup, **look: str | float) -> Markup:
        said = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, points))
        return element("polyline", *inside, points=said, fill="none", stroke_linejoin="round", stroke_linecap="round", **look)

    drawn = grid(ticks, lambda value: at((x0, value))[1], left, width - right, "{:.0%}".format if percent else number)
    for tick in nice_ticks(x0, x1):
        if x0 <= tick <= x1 and tick == int(tick):
            x = at((tick, low))[0]
            drawn.append(element("text", str(int(tick)), class_="tick", x=x, y=height - 12, text_anchor="middle"))
    for s in shown:
        if s.smooth > 1:
            drawn.append(path(s.points, stroke=s.colour, stroke_width=1, opacity=".3"))
        line = moving_average(s.points, s.smooth)
        drawn.append(path(line, element("title", s.label), stroke=s.colour, stroke_width=2.2))
        for point in s.points if s.dots else ():
            x, y = at(point)
            note = element("title", f"{s.label}, step {point[0]:g}: {say(point[1])}")
            drawn.append(element("circle", note, cx=x, cy=y, r=3.2, fill=s.colour))
    return figure(title, svg(title, width, height, drawn), legend((s.label, s.colour) for s in shown))


def bar_chart(title: str, bars: Sequence[Bar]) -> Markup:
    """Accuracies from 0 to 100 % with their 95 % intervals as whiskers."""
    width, height, left, right, top, bottom = 440, 280, 40, 8, 20, 34
    slot = (width - left - right) / max(1, len(bars))
    wide = min(64.0, slot * 0.62)
    tallest = max((b.high for b in bars), default=1.0)
    highest = 1.0 if tallest > 0.8 else nice_ticks(0, tallest * 1.12)[-1]

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - value / highest)

    drawn = grid([t for t in nice_ticks(0, highest, 5) if t <= highest + 1e-9], y, left, width - right, "{:.0%}".format)
    for i, b in enumerate(bars):
        x = left + slot * (i + 0.5)
        note = element("title", f"{b.label}: {b.value:.1%} ({b.low:.1%} to {b.high:.1%}) {b.note}")
        whisker = "M{0:.1f} {2:.1f}V{3:.1f}M{1:.1f} {2:.1f}h12M{1:.1f} {3:.1f}h12".format(x, x - 6, y(b.low), y(b.high))
        drawn += [
            element("rect", note, x=x - wide / 2, y=y(b.value), width=wide, height=y(0) - y(b.value), rx=3, fill=b.colour),
            element("path", class_="whisker", d=whisker),
            element("text", f"{b.value:.1%}", class_="value", x=x, y=y(b.high) - 6, text_anchor="middle"),
            element("text", b.label, class_="name", x=x, y=height - 12, text_anchor="middle"),
        ]
    return figure(title, svg(title, width, height, drawn))


def stacked_rows(
    title: str, rows: Sequence[Stack], *, part: str, total: str, limit: tuple[str, float] | None = None
) -> Markup:
    """Horizontal rows whose parts add up, on one scale.  ``part`` and ``total`` are forms (``"{:.1f} s"``) of an amount,
    ``limit`` is (label, amount) of a dashed line across all rows."""
    if not rows:
        return Markup("")
    totals = [sum(amount for _, amount, _ in row.parts) for row in rows]
    whole = max(*totals, 1.03 * limit[1] if limit else 0.0) or 1.0  # the limit stands inside, where it is seen
    body = []
    for row, amount in zip(rows, totals, strict=True):
        track = []
        for label, size, colour in row.parts:
            note = f"{label}: {part.format(size)}" if label else part.format(size)
            track.append(element("span", style=f"width:{100 * size / whole:.2f}%;background:{colour}", title=note))
        if limit:
            note = f"{limit[0]}: {part.format(limit[1])}"
            track.append(element("u", style=f"left:{100 * limit[1] / whole:.2f}%", title=note))
        cells = element("b", row.label), element("div", *track, class_="track"), element("i", total.format(amount))
        body.append(element("div", *cells, class_="stack"))
    colours = {label: colour for row in rows for label, _, colour in row.parts if label}
    return figure(title, *body, legend(colours.items()))


def grid(ticks: Sequence[float], y: Callable, left: int, right: int, say: Callable) -> list[Markup]:
    """A line at ``y(tick)`` and its number ``say(tick)`` for each tick."""
    drawn = []
    for tick in ticks:
        drawn.append(element("line", class_="grid", x1=left, x2=right, y1=y(tick), y2=y(tick)))
        drawn.append(element("text", say(tick), class_="tick", x=left - 6, y=y(tick) + 4, text_anchor="end"))
    return drawn


def svg(title: str, width: int, height: int, drawn: Sequence[Markup]) -> Markup:
    return element("svg", *drawn, viewBox=f"0 0 {width} {height}", role="img", aria_label=title)


def legend(marks: Iterable[tuple[str, str]]) -> Markup:
    """(label, colour) in a row, if there are any."""
    spans = [element("span", element("i", style=f"background:{colour}"), label, class_="mark") for label, colour in marks]
    return element("div", *spans, class_="legend") if spans else Markup("")


def figure(title: str, *body: Markup) -> Markup:
    return element("figure", *([element("figcaption", title)] if title else []), *body)
