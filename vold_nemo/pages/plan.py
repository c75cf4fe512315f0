"""``plan.json`` and ``plan.html``: the memory of each phase as one stacked bar, against what a GPU has."""

from __future__ import annotations

import json
from pathlib import Path

from vold_nemo.config import Config
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.pages.blocks import Section
from vold_nemo.pages.charts import Stack, stacked_rows
from vold_nemo.pages.render import render
from vold_nemo.planning.memory import GIB
from vold_nemo.planning.plan import Plan, figure

# Okabe and Ito's colours, told apart without red and green.
COLOURS = {
    "parameters": "#0072b2", "gradients": "#56b4e9", "optimizer": "#004c77", "teacher": "#e69f00", "engine": "#009e73",
    "hidden states": "#f0e442", "activations": "#d55e00", "objective": "#cc79a7", "cache": "#66c2a5", "gathered": "#a6761d",
    "reserve": "#999999",
}  # fmt: skip


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
                "rehearsed": stage.time.rehearsed if stage.time is not None else (),
            }
            for stage in plan.stages
        ],
    }


def draw(config: Config, plan: Plan) -> str:
    rows = [
        Stack(f"{stage.stage} {phase.name}", [(name, size / GIB, COLOURS[name]) for name, size in phase.parts.items()])
        for stage in plan.stages
        for phase in stage.worst()
    ]
    capacity = max(stage.capacity or 0 for stage in plan.stages)
    limit = ("one GPU", capacity / GIB) if capacity else None
    hours = "" if plan.gpu_hours is None else f", {figure(plan.gpu_hours)} GPU hours"
    lead = f"It {'fits' if plan.fits else 'does not fit'}{hours}. Planned, not measured. GiB on the fullest rank of each phase"
    chart = stacked_rows("Memory of each phase, GiB", rows, part="{:.2f} GiB", total="{:.1f}", limit=limit)
    heading = f"Plan of {config.name} on {config.cluster.name}"
    return render(f"Plan of {config.name}", heading, f"{lead}; dashed: one GPU.", [Section("", "", [chart])])


def write(config: Config, plan: Plan) -> Path:
    """Both files; returns the page's path."""
    folder = Path(config.plan.path)
    with writing("plan.path", folder):
        replace_text(folder / "plan.json", json.dumps(as_data(plan), indent=1) + "\n")
        replace_text(folder / "plan.html", draw(config, plan))
    return folder / "plan.html"
