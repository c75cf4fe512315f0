"""The plan's page: every phase with what it holds, beside what one GPU has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vold_nemo.config.compose import compose
from vold_nemo.pages.plan import write
from vold_nemo.planning.memory import GIB
from vold_nemo.planning.plan import make_plan, models_of


@pytest.mark.parametrize(("cluster", "limits"), [("h100", True), ("local", False)])
def test_every_phase_is_drawn_with_its_total_and_the_gpu_where_it_is_known(tmp_path, cluster, limits):
    config = compose(["experiment=paper_3b", f"cluster={cluster}", f"plan.path={tmp_path}/plan"])
    plan = make_plan(config, models_of(config))
    page = write(config, plan).read_text()
    phases = [(stage.stage, phase) for stage in plan.stages for phase in stage.worst()]
    assert page.count('class="stack"') == len(phases) > 5
    assert page.count("one GPU: ") == (len(phases) if limits else 0)
    for stage, phase in phases:
        assert f"<b>{stage} {phase.name}</b>" in page and f"<i>{phase.total / GIB:.1f}</i>" in page
        for name, size in phase.parts.items():
            assert f'title="{name}: {size / GIB:.2f} GiB"' in page
    assert "It fits" in page and "Planned, not measured" in page and "http" not in page
    assert json.loads((Path(config.plan.path) / "plan.json").read_text())["fits"]
