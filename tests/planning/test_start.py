"""What a start costs, held against sums made another way."""

import dataclasses

import pytest

from vold_nemo.config.compose import compose
from vold_nemo.megatron.architecture import published
from vold_nemo.planning.allocation import parameter_count
from vold_nemo.planning.memory import Models
from vold_nemo.planning.plan import make_plan, models_of
from vold_nemo.planning.start import start
from vold_nemo.planning.text import start_table

RATES = ("cluster.storage_gbs=5", "cluster.storage_total_gbs=40", "cluster.disk_gbs=4", "cluster.launch.stage=/local")


@pytest.fixture(scope="module")
def dense():
    """A 7B student and a dense 32B teacher: their published shapes, no files."""
    shapes = published()
    return Models(shapes["Qwen2.5-VL-7B-Instruct"], shapes["Qwen3-32B"], 0, shapes["Qwen3-32B"])


def configuration(*more: str):
    return compose([
        "experiment=paper_3b_h100", "parallel.tensor=8", "parallel.pipeline=4", "parallel.sequence=true",
        "cluster.gpus_per_node=8", "cluster.gpus.sft=64", "cluster.gpus.vold=64", *more,
    ])  # fmt: skip


def test_a_node_of_one_pipeline_stage_reads_its_layers_once_and_the_engines_student(dense):
    """64 equal layers on 4 stages; the heaviest stage has the LM head (the embedding is as large, and lies on the first)."""
    teacher, found = dense.teachers[0], start(configuration(), dense, "vold", 64)
    ends = 2 * teacher.vocabulary * teacher.hidden + teacher.hidden
    layers = (parameter_count(teacher) - ends) / 4
    fullest = layers + teacher.vocabulary * teacher.hidden + teacher.hidden
    assert found.nodes == 8 and found.read == found.copied == 2 * parameter_count(dense.student) + 2 * fullest
    assert found.whole == 2 * parameter_count(dense.student) + 2 * parameter_count(teacher)
    assert start(configuration(), dense, "traces", 64).read == 2 * parameter_count(teacher)


def test_seconds_are_bytes_over_the_slowest_of_the_rates_on_the_way(dense):
    plain = start(configuration("cluster.storage_gbs=5"), dense, "vold", 64)
    assert plain.seconds["reading"] == pytest.approx(plain.read / 5e9) and "staging" not in plain.seconds
    shared = start(configuration("cluster.storage_gbs=5", "cluster.storage_total_gbs=8"), dense, "vold", 64)
    assert shared.seconds["reading"] == pytest.approx(plain.read / 1e9)  # eight nodes share 8 GB/s
    staged = start(configuration(*RATES), dense, "vold", 64)
    assert staged.seconds["staging"] == staged.seconds["reading"] == pytest.approx(plain.read / 4e9)
    assert staged.seconds["imports"] == 30 and staged.seconds["groups"] == 5  # world, tensor, pipeline, data, model copy
    assert staged.gpu_hours == pytest.approx(staged.total * 64 / 3600)
    assert "reading" not in start(configuration(), dense, "sft", 64).seconds


def test_of_experts_a_rank_reads_its_own_and_a_node_copies_the_files_of_all(dense):
    moe = dataclasses.replace(published()["Qwen3-30B-A3B"], layers=4)
    models = dataclasses.replace(dense, teacher=moe, trace_writer=moe)
    few = configuration("parallel.tensor=4", "parallel.pipeline=2", "parallel.expert=16", "cluster.gpus_per_node=4")
    found = start(few, models, "vold", 32)
    experts = 2 * moe.layers // 2 * moe.experts * 3 * moe.hidden * moe.expert_ffn  # bytes of a stage's
    assert found.copied - found.read == pytest.approx(experts * 12 / 16)  # a node has 4 of 16 expert ranks


def test_a_plan_says_what_a_start_takes_or_why_it_does_not_know(capsys):
    config = configuration(*RATES)
    lines = list(start_table(config, models_of(config), make_plan(config, models_of(config))))
    assert len(lines) == 4 and "planned, not measured" in lines[0]
    assert "staging" in lines[3] and "copied first" in lines[3] and "unknown" not in lines[3]
    config = configuration()
    lines = list(start_table(config, models_of(config), make_plan(config, models_of(config))))
    assert all("reading unknown (cluster.storage_gbs)" in line for line in lines[1:])
