"""The search tries every legal layout and names the cheapest way to make one fit; so do the changes that a plan offers."""

import itertools

import pytest

from vold_nemo.config.compose import compose
from vold_nemo.planning.plan import fits, layout_findings, models_of, plan_stage
from vold_nemo.planning.search import _names, _savings, _with, assign, candidates, cheapest_changes, fewest_gpus, ranked
from vold_nemo.planning.validity import Pending, findings


@pytest.fixture
def paper():
    return compose(["experiment=paper_3b"])


def test_the_search_ranks_every_legal_layout_and_only_those(paper):
    models = models_of(paper)
    found = ranked(paper, models, "vold", 4)
    tried = list(candidates(paper, models, "vold", 4))
    for config in tried:
        assert all(isinstance(error, Pending) for error in findings(config, "plan", 4))
    sizes = {(c.parallel.tensor, c.parallel.pipeline, c.parallel.context) for c in tried}
    legal = {(t, p, c) for t, p, c in itertools.product((1, 2, 4), repeat=3) if t * p * c <= 4}
    assert sizes == legal and len(found) == len(tried) == 9 * len(legal)
    fitting = [layout.plan.fits for layout in found]
    assert fitting == sorted(fitting, reverse=True) and any(fitting)
    steps = [layout.plan.time.step for layout in found if layout.plan.fits]
    assert steps == sorted(steps)


def test_the_fewest_gpus_fit_and_half_of_them_do_not(paper):
    models = models_of(paper)
    least = fewest_gpus(paper, models, "vold")
    assert least.plan.fits
    assert not any(layout.plan.fits for layout in ranked(paper, models, "vold", least.plan.gpus // 2))


def test_a_layout_is_given_the_fastest_recomputation_and_offload_that_make_it_fit():
    """Against every combination of one layout, planned by itself."""
    paper = compose(["experiment=paper_3b", "cluster.memory_gib=73"])
    models = models_of(paper)
    (best,) = (
        layout for layout in ranked(paper, models, "vold", 2)
        if {"parallel.tensor=2", "vold.micro_batch_tokens=8192", "rollout.batch=64"} <= set(layout.overrides)
    )  # fmt: skip
    (plain,) = (
        c for c in candidates(paper, models, "vold", 2)
        if (c.parallel.tensor, c.vold.micro_batch_tokens, c.rollout.batch) == (2, 8192, 64)
    )  # fmt: skip
    assert not fits(plain, models, "vold", 2) and best.plan.fits
    assert len(_savings("vold", True)) == 3 * 2**4 - 1
    every = [plan_stage(_with(plain, chosen), models, "vold", 2) for chosen in _savings("vold", True)]
    assert best.plan.time.step == min(plan.time.step for plan in every if plan.fits)


def test_expert_parallelism_is_tried_where_a_teacher_has_experts():
    config = compose(["experiment=qwen2_5_vl_72b_from_235b"])
    tried = list(candidates(config, models_of(config), "vold", 32))
    assert {c.parallel.expert for c in tried} == {1, 2, 4, 8, 16, 32}
    assert {c.parallel.pipeline for c in tried} >= {1, 4, 16}  # 94 layers on 4 and 16 stages: uneven ones
    assert all(c.parallel.sequence for c in tried if c.parallel.tensor > 1)


def test_what_is_said_of_a_layout_makes_it_from_the_experiment():
    own = ["experiment=paper_3b", "parallel.recompute=full", "rollout.sleep=true"]
    config = compose(own)
    models = models_of(config)
    for layout in ranked(config, models, "vold", 4)[:4]:
        again = compose([*own, *layout.overrides])
        assert plan_stage(again, models, "vold", 4).peak == layout.plan.peak
        assert _names(config, again, "vold") == layout.overrides


@pytest.mark.parametrize("overrides, offered", [
    (["experiment=paper_3b_h200", "rollout.sleep=false", "teacher.offload=false", "cluster.memory_gib=124"],
     "teacher.offload=true"),
    (["experiment=paper_3b", "parallel.sequence=false", "vold.micro_batch_tokens=32768"], "parallel.recompute=selective"),
    (["experiment=paper_3b", "teacher.path=Qwen/Qwen3-32B", "cluster.gpus.vold=8"], "traces.engine=vllm"),
])  # fmt: skip
def test_the_changes_offered_know_recomputation_offload_and_engines(overrides, offered):
    config = compose(overrides)
    models = models_of(config)
    changes = cheapest_changes(config, models)
    assert len(changes) == 3 and any(offered in names for names, _ in changes)
    for names, plan in changes:
        assert plan.fits
        again = compose([*(one for one in overrides if one.split("=")[0] not in {n.split("=")[0] for n in names}), *names])
        for stage in plan.stages:
            assert not layout_findings(again, models, stage.stage, stage.gpus)
            assert plan_stage(again, models, stage.stage, stage.gpus).fits


def test_a_change_that_leaves_half_a_node_idle_is_not_offered(paper):
    config = assign(assign(paper, "cluster.gpus_per_node", 3), "vold.micro_batch_tokens", 65536)
    for names, _ in cheapest_changes(config, models_of(config)):
        assert not any(name.startswith("cluster.gpus.vold") for name in names)
