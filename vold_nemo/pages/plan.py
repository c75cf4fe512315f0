"""``plan.json`` and ``plan.html``: the memory of each phase as one stacked bar, against what a GPU has."""

from __future__ import annotations

import html
import json
from pathlib import Path

from vold_nemo.config import Config
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.planning.memory import GIB
from vold_nemo.planning.plan import Plan, figure

# Okabe and Ito's colours, told apart without red and green.
COLOURS = {
    "parameters": "#0072b2", "gradients": "#56b4e9", "optimizer": "#004c77", "teacher": "#e69f00", "engine": "#009e73",
    "hidden states": "#f0e442", "activations": "#d55e00", "objective": "#cc79a7", "cache": "#66c2a5", "gathered": "#a6761d",
    "reserve": "#999999",
}  # fmt: skip
_WIDTH, _LEFT, _BAR, _GAP = 900, 130, 22, 10


def as_data(plan: Plan) -> dict:
    """Everything the plan found, in bytes, seconds and hours; ``measured`` is false, always."""
    return {
        "measured": False,
        "fits": plan.fits,
        "gpu_hours": plan.gpu_hours,
        "stages": [
            {
                "stage": stage.stage,
                "gpus": stage.gpus,
                "capacity_bytes": stage.capacity,
                "phases": [
                    {"phase": phase.name, "pipeline_stage": phase.at.stage, "bytes": phase.parts, "total": phase.total}
                    for phase in stage.phases
                ],
                "steps": stage.time.steps if stage.time is not None else None,
                "seconds_a_step": stage.time.seconds if stage.time is not None else None,
            }
            for stage in plan.stages
        ],
    }


def svg(plan: Plan) -> str:
    phases = [(stage, phase) for stage in plan.stages for phase in stage.worst()]
    capacity = max((stage.capacity or 0) for stage in plan.stages)
    scale = (_WIDTH - _LEFT - 70) / max(capacity, *(phase.total for _, phase in phases))
    height = len(phases) * (_BAR + _GAP) + 20
    drawn = []
    for number, (stage, phase) in enumerate(phases):
        top, left = number * (_BAR + _GAP) + 15, float(_LEFT)
        drawn.append(f'<text x="{_LEFT - 8}" y="{top + 15}" text-anchor="end">{stage.stage} {html.escape(phase.name)}</text>')
        for name, size in phase.parts.items():
            drawn.append(
                f'<rect x="{left:.1f}" y="{top}" width="{size * scale:.1f}" height="{_BAR}" fill="{COLOURS[name]}">'
                f"<title>{name}: {size / GIB:.2f} GiB</title></rect>"
            )
            left += size * scale
        drawn.append(f'<text x="{left + 5:.1f}" y="{top + 15}">{phase.total / GIB:.1f}</text>')
    if capacity:
        line = _LEFT + capacity * scale
        ends = f'x1="{line:.1f}" x2="{line:.1f}" y1="4" y2="{height}"'
        drawn.append(f'<line {ends} stroke="currentColor" stroke-dasharray="4 3"/>')
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="memory of each phase in GiB">{"".join(drawn)}</svg>'


def page(config: Config, plan: Plan) -> str:
    used = [name for name in COLOURS if any(name in phase.parts for stage in plan.stages for phase in stage.phases)]
    legend = " ".join(f'<span><i style="background:{COLOURS[name]}"></i>{name}</span>' for name in used)
    verdict = "fits" if plan.fits else "does not fit"
    hours = "" if plan.gpu_hours is None else f", {figure(plan.gpu_hours)} GPU hours"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Plan of {html.escape(config.name)}</title><style>:root{{color-scheme:light dark}}"
        "body{font:15px system-ui;max-width:950px;margin:2em auto;padding:0 1em}svg{width:100%}"
        "svg text{font-size:13px;fill:currentColor}span{white-space:nowrap}"
        "i{display:inline-block;width:.9em;height:.9em;margin:0 .3em 0 1em}</style>"
        f"<h1>Plan of {html.escape(config.name)} on {html.escape(config.cluster.name)}</h1>"
        f"<p>It {verdict}{hours}. Planned, not measured. GiB on the fullest rank of each phase; dashed: one GPU.</p>"
        f"<p>{legend}</p>{svg(plan)}</html>\n"
    )


def write(config: Config, plan: Plan) -> Path:
    """Both files; returns the page's path."""
    folder = Path(config.plan.path)
    with writing("plan.path", folder):
        replace_text(folder / "plan.json", json.dumps(as_data(plan), indent=1) + "\n")
        replace_text(folder / "plan.html", page(config, plan))
    return folder / "plan.html"
