"""Charts as SVG text.  Colours and letters come from the page's CSS variables, so light and dark need no second drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]


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
    parts: list[tuple[str, float, str]] = field(default_factory=list)


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
    out = []
    for i, (x, _) in enumerate(points):
        part = [y for _, y in points[max(0, i - window + 1) : i + 1]]
        out.append((x, sum(part) / len(part)))
    return out


def line_chart(
    title: str, series: Sequence[Series], *, percent: bool = False, zero: bool = True, references: Sequence[tuple] = ()
) -> str:
    """Lines over training steps.  ``references``: (label, value, colour) drawn as dashed horizontals."""
    width, height, left, right, top, bottom = 330, 205, 40, 10, 10, 28
    shown = [s for s in series if s.points]
    if not shown:
        return ""
    xs = [x for s in shown for x, _ in s.points]
    ys = [y for s in shown for _, y in s.points] + [value for _, value, _ in references]
    ticks = nice_ticks(min([*ys, 0.0] if zero else ys), max(ys))
    low, high = ticks[0], ticks[-1]
    x0, x1 = min(xs), max(xs)

    def at(point: Point) -> tuple[float, float]:
        x = left + (width - left - right) * ((point[0] - x0) / (x1 - x0) if x1 > x0 else 0.5)
        return x, top + (height - top - bottom) * (1 - (point[1] - low) / (high - low))

    def path(points: Sequence[Point]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, points))

    svg = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        y = at((x0, tick))[1]
        text = f"{tick:.0%}" if percent else number(tick)
        svg.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        svg.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in nice_ticks(x0, x1):
        if x0 <= tick <= x1 and tick == int(tick):
            svg.append(
                f'<text class="tick" x="{at((tick, low))[0]:.1f}" y="{height - 12}" text-anchor="middle">{int(tick)}</text>'
            )
    for label, value, colour in references:
        y = at((x0, value))[1]
        svg.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-dasharray="4 4">'
            f"<title>{escape(label)}: {value:.1%}</title></line>"
        )
    for s in shown:
        style = f'fill="none" stroke="{s.colour}" stroke-linejoin="round" stroke-linecap="round"'
        if s.smooth > 1:
            svg.append(f'<polyline points="{path(s.points)}" {style} stroke-width="1" opacity=".3"/>')
        line = moving_average(s.points, s.smooth)
        svg.append(
            f'<polyline points="{path(line)}" {style} stroke-width="2.2"><title>{escape(s.label)}</title></polyline>'
        )
        for point in s.points if s.dots else ():
            x, y = at(point)
            value = f"{point[1]:.1%}" if percent else number(point[1])
            svg.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{s.colour}">'
                f"<title>{escape(s.label)}, step {point[0]:g}: {value}</title></circle>"
            )
    svg.append("</svg>")
    marks = [(s.label, s.colour, "") for s in shown] + [(label, colour, "dashed") for label, _, colour in references]
    return figure(title, "".join(svg), legend(marks))


def bar_chart(title: str, bars: Sequence[Bar]) -> str:
    """Accuracies from 0 to 100 % with their 95 % intervals as whiskers."""
    width, height, left, right, top, bottom = 440, 280, 40, 8, 20, 34
    slot = (width - left - right) / max(1, len(bars))
    wide = min(64.0, slot * 0.62)
    highest = (
        1.0 if max((b.high for b in bars), default=1) > 0.8 else nice_ticks(0, max(b.high for b in bars) * 1.12)[-1]
    )

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - value / highest)

    svg = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for tick in nice_ticks(0, highest, 5):
        if tick <= highest + 1e-9:
            svg.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
            svg.append(f'<text class="tick" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
    for i, b in enumerate(bars):
        middle = left + slot * (i + 0.5)
        says = f"{b.label}: {b.value:.1%} ({b.low:.1%} to {b.high:.1%}) {b.note}"
        svg.append(
            f'<rect x="{middle - wide / 2:.1f}" y="{y(b.value):.1f}" width="{wide:.1f}" height="{y(0) - y(b.value):.1f}" '
            f'rx="3" fill="{b.colour}"><title>{escape(says)}</title></rect>'
        )
        svg.append(
            f'<path class="whisker" d="M{middle:.1f} {y(b.low):.1f}V{y(b.high):.1f}M{middle - 6:.1f} {y(b.low):.1f}h12'
            f'M{middle - 6:.1f} {y(b.high):.1f}h12"/>'
        )
        svg.append(
            f'<text class="value" x="{middle:.1f}" y="{y(b.high) - 6:.1f}" text-anchor="middle">{b.value:.1%}</text>'
        )
        svg.append(
            f'<text class="name" x="{middle:.1f}" y="{height - 12}" text-anchor="middle">{escape(b.label)}</text>'
        )
    svg.append("</svg>")
    return figure(title, "".join(svg), "")


def stacked_rows(title: str, rows: Sequence[Stack], unit: str) -> str:
    """Horizontal rows whose parts add up; all rows share one scale."""
    longest = max((sum(amount for _, amount, _ in row.parts) for row in rows), default=0.0)
    if longest <= 0:
        return ""
    body = []
    for row in rows:
        total = sum(amount for _, amount, _ in row.parts)
        parts = "".join(
            f'<span style="width:{100 * amount / longest:.2f}%;background:{colour}" '
            f'title="{escape(label)}: {amount:.1f} {unit}"></span>'
            for label, amount, colour in row.parts
        )
        body.append(
            f'<div class="stack"><b>{escape(row.label)}</b><div class="track">{parts}</div><i>{total:,.0f} {unit}</i></div>'
        )
    colours = {label: colour for row in rows for label, _, colour in row.parts}
    return figure(title, "".join(body), legend([(label, colour, "") for label, colour in colours.items()]))


def legend(marks: Sequence[tuple[str, str, str]]) -> str:
    return "".join(
        f'<span class="mark {kind}"><i style="{"border-color" if kind else "background"}:{colour}"></i>{escape(label)}</span>'
        for label, colour, kind in marks
    )


def figure(title: str, body: str, below: str) -> str:
    note = f'<div class="legend">{below}</div>' if below else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{body}{note}</figure>"
