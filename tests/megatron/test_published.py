"""Every published size in every legal layout up to 128 ranks: each source tensor once, each parameter once, shapes equal."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vold_nemo.config import ParallelConfig
from vold_nemo.megatron.architecture import PUBLISHED, Architecture, check_layout, padded_vocabulary, published
from vold_nemo.megatron.names import hf_names, placements
from vold_nemo.megatron.weights import matched

ROOT = Path(__file__).resolve().parents[2]
SIZES = sorted(file.stem for file in PUBLISHED.glob("*.json"))
RANKS = 128


def layouts(arch: Architecture) -> list[tuple[int, int, int]]:
    """Every legal (tensor, pipeline, expert) whose smallest world has at most 128 ranks."""
    found = []
    sizes = [n for n in range(1, RANKS + 1) if (arch.experts or 1) % n == 0]  # others are refused; asking takes a while
    for tensor in range(1, RANKS + 1):
        for pipeline in range(1, RANKS // tensor + 1):
            for expert in sizes:
                world = pipeline * math.lcm(tensor, expert)
                parallel = ParallelConfig(tensor=tensor, pipeline=pipeline, expert=expert, sequence=tensor > 1)
                if world <= RANKS and not check_layout(arch, parallel, world):
                    found.append((tensor, pipeline, expert))
    return found


def test_every_fixture_says_where_its_values_were_read():
    for name in SIZES:
        said = json.loads((PUBLISHED / f"{name}.json").read_text())
        assert said["model"] == f"Qwen/{name}" and said["read_from"]
        assert said["kind"] in ("config.json", "values restated in another project's configuration")


def on_disk(name: str) -> dict[str, tuple[int, ...]]:
    """Tensors that transformers says the language model has, cut to two layers, as the publishers' files name them."""
    import torch
    import transformers as hf

    given = json.loads((PUBLISHED / f"{name}.json").read_text())["config"]
    text = given.get("text_config", given)
    text["num_hidden_layers"] = 2
    vision = given.get("vision_config")
    if vision:
        vision["depth"] = 1
    config = hf.AutoConfig.for_model(**given)
    auto = hf.AutoModelForImageTextToText if vision else hf.AutoModelForCausalLM
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in auto.from_config(config).state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if "visual" in key:
            continue
        modern = given["model_type"].startswith("qwen3_vl")
        key = key if modern else key.replace("model.language_model.", "model.")
        if ".experts." not in key:
            found[key] = shape
        elif modern:  # published transposed
            found[key] = (shape[0], shape[2], shape[1])
        else:  # published one by one
            stem, part = key.rsplit(".", 1)
            for expert in range(shape[0]):
                for single in ("gate_proj", "up_proj") if part == "gate_up_proj" else ("down_proj",):
                    rows = shape[1] // 2 if part == "gate_up_proj" else shape[1]
                    found[f"{stem}.{expert}.{single}.weight"] = (rows, shape[2])
    if given.get("tie_word_embeddings"):
        del found["lm_head.weight"]
    return found


@pytest.mark.parametrize("name", SIZES)
def test_the_table_has_the_tensors_that_transformers_has(name):
    arch = replace(published()[name], layers=2)
    expected = on_disk(name)
    mapped = {key: shape for place in placements(arch, 1, arch.vocabulary)
              for key, shape in zip(place.hf, place.shapes, strict=True)}
    assert mapped == expected and sorted(hf_names(arch)) == sorted(expected)


@pytest.mark.parametrize("name", SIZES)
def test_each_tensor_is_mapped_once_and_each_parameter_filled_once_in_every_layout(name):
    """Over all layers and experts by name; over the rows of each kind of tensor for every tensor size; stages and expert
    ranks are partitions for every pipeline and expert size."""
    arch = published()[name]
    legal = layouts(arch)
    assert (1, 1, 1) in legal and len(legal) > 10
    whole = list(placements(arch, 1, arch.vocabulary))
    assert max(Counter(place.megatron for place in whole).values()) == 1
    used = Counter((key, place.expert if place.packed else None) for place in whole for key in place.hf)
    assert max(used.values()) == 1 and {key for key, _ in used} == set(hf_names(arch))

    first = replace(arch, layers=1, experts=min(arch.experts, 1))  # the other layers and experts repeat these shapes
    for tensor in sorted({tensor for tensor, _, _ in legal}):
        for place in placements(first, tensor, padded_vocabulary([arch.vocabulary], tensor)):
            parts = [place.part(rank, tensor) for rank in range(tensor)] if place.split else [place.part(0, tensor)]
            assert len({sum(block.size for block in part) for part in parts}) == 1, place
            for source in range(len(place.hf)):
                spans = sorted((b.start, b.start + b.size) for part in parts for b in part if b.source == source)
                ends = [0, *(end for _, end in spans)]
                axis = place.axis + (2 - place.axis if place.transposed else 1) if place.packed else place.axis
                assert [start for start, _ in spans] == ends[:-1] and ends[-1] == place.shapes[source][axis], place
    for pipeline in {pipeline for _, pipeline, _ in legal}:
        stages = [arch.stage_of(layer, pipeline) for layer in range(arch.layers)]
        assert stages == sorted(stages) and tuple(Counter(stages)[s] for s in range(pipeline)) == arch.stages(pipeline)
    for expert in {expert for _, _, expert in legal if arch.experts}:
        each = arch.experts // expert
        assert Counter(e // each for e in range(arch.experts)) == dict.fromkeys(range(expert), each)


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("rank", [0, 3, 7])
def test_experts_that_transformer_engine_keeps_in_one_module_are_found_under_their_local_numbers(stage, rank):
    arch, layout = published()["Qwen3-VL-30B-A3B-Instruct"], SimpleNamespace(
        pipeline=4, virtual=1, pipeline_rank=stage, expert=8, expert_rank=rank
    )  # fmt: skip
    layers, each = arch.layers // 4, arch.experts // 8
    local = {
        f"decoder.layers.{layer}.mlp.experts.{module}.weight{expert}": (module, stage * layers + layer, rank * each + expert)
        for layer in range(layers) for expert in range(each) for module in ("linear_fc1", "linear_fc2")
    }  # fmt: skip
    places = [place for place in placements(arch, 1, arch.vocabulary)
              if place.expert is not None and arch.stage_of(place.layer, 4) == stage]
    for place, (module, layer, expert) in matched(places, local, arch, layout):
        assert (place.layer, place.expert) == (layer, expert) and module in place.megatron


def build(items: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.megatron.meta_layers", *items], capture_output=True, text=True,
                          cwd=ROOT, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\n") >= len(items)


def test_layers_really_built_have_the_placements_parameters_and_shapes():
    build(["Qwen2.5-VL-3B-Instruct:4:1", "Qwen2.5-0.5B:2:1", "Qwen3-VL-2B-Instruct:16:1",
           "Qwen3-235B-A22B:8:16", "Qwen3-VL-30B-A3B-Instruct:2:32"])


@pytest.mark.long
@pytest.mark.parametrize("name", SIZES)
def test_layers_really_built_for_every_tensor_and_expert_size(name):
    kinds = {(tensor, expert) for tensor, _, expert in layouts(published()[name])}
    build([f"{name}:{tensor}:{expert}" for tensor, expert in sorted(kinds)])
