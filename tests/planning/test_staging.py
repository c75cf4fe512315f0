"""Which files a node copies: those that hold a tensor of its ranks, by the ranks that megatron-core numbers."""

import json

import pytest

from vold_nemo.config import ConfigError, ParallelConfig
from vold_nemo.config.compose import compose
from vold_nemo.megatron import architecture, tensors
from vold_nemo.megatron.names import hf_names
from vold_nemo.planning.staging import Node, names_of, needed, wanted


def step(**changes: str) -> dict[str, str]:
    return {"VOLD_RANKS": "128", "SLURM_STEP_NUM_NODES": "16", "SLURM_NODEID": "2"} | changes


def test_a_node_knows_its_ranks_from_srun_or_says_that_it_does_not():
    assert Node.here(step()) == Node(range(16, 24), 128)
    for other in ({"VOLD_RANKS": ""}, {"VOLD_RANKS": "100"}, {"SLURM_NODEID": ""}):
        assert Node.here(step(**other)) is None
    assert Node.here({}) is None


@pytest.mark.parametrize(("name", "expert"), [("Qwen3-235B-A22B", 32), ("Qwen3-32B", 1)])
def test_ranks_of_128_read_their_stages_layers_and_their_experts_alone(name, expert):
    arch, parallel = architecture.published()[name], ParallelConfig(tensor=8, pipeline=4, expert=expert, sequence=True)
    nodes = {number: names_of(arch, parallel, Node(range(8 * number, 8 * number + 8), 128)) for number in (0, 5, 10, 15)}
    everybodys = {one for one in hf_names(arch) if ".experts." not in one}
    assert {one for found in nodes.values() for one in found if ".experts." not in one} == everybodys
    layers = arch.stages(4)
    for number, found in nodes.items():
        stage = number // 4
        held = range(sum(layers[:stage]), sum(layers[: stage + 1]))
        assert {int(one.split(".layers.")[1].split(".")[0]) for one in found if ".layers." in one} == set(held)
        assert ("lm_head.weight" in found) == (stage == 3) and ("model.embed_tokens.weight" in found) == (stage == 0)
        experts = {int(one.split(".experts.")[1].split(".")[0]) for one in found if ".experts." in one}
        if arch.experts:  # 8 of 32 expert ranks, four experts each
            assert len(experts) == 32 and experts == set(range(32 * (number % 4), 32 * (number % 4) + 32))


def test_expert_ranks_are_those_that_megatron_gives():
    from megatron.core.parallel_state import RankGenerator

    generator = RankGenerator(tp=1, ep=4, dp=4, pp=2, cp=1, order="tp-cp-ep-dp-pp")
    for group in generator.get_ranks("ep"):
        assert [rank % 16 % 4 for rank in group] == [0, 1, 2, 3]
    assert [rank // 16 for group in generator.get_ranks("pp") for rank in group] == [0, 1] * 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A student in one file and a teacher in a file for each of four layers, ends apart."""
    from tests.models.stages import make_world

    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    split_by_layer(folder / "teacher")
    return folder


def split_by_layer(teacher):
    """A file a layer, and one for both ends; beside them what no run reads."""
    import safetensors.torch

    every = safetensors.torch.load_file(teacher / "model.safetensors")
    placed = {name: f"layer-{name.split('.')[2]}.safetensors" if ".layers." in name else "ends.safetensors" for name in every}
    for file in set(placed.values()):
        safetensors.torch.save_file({name: every[name] for name in every if placed[name] == file}, teacher / file)
    (teacher / "model.safetensors").unlink()
    (teacher / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (teacher / "README.md").write_text("not read")
    (teacher / "pytorch_model.bin").write_bytes(b"a pickle")


def configuration(world, *more: str):
    return compose([
        "experiment=miniature", f"student.path={world}/student", f"vold.start={world}/student", f"teacher.path={world}/teacher",
        f"prefetch.lock={world}/none.lock", "parallel.pipeline=2", *more,
    ])  # fmt: skip


def test_each_verb_copies_what_its_ranks_read(world):
    config, first = configuration(world), Node(range(2), 4)
    student, teacher = wanted(config, "vold", first)
    assert (student.key, student.source) == ("vold.start", world / "student") and "model.safetensors" in student.files
    assert teacher.key == "teacher.path" and teacher.links == ("layer-2.safetensors", "layer-3.safetensors")
    assert {"ends.safetensors", "layer-0.safetensors", "layer-1.safetensors"} <= set(teacher.files)
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= set(teacher.files)
    assert not {"README.md", "pytorch_model.bin"} & set(teacher.files)
    (_, last) = wanted(config, "vold", Node(range(2, 4), 4))
    assert last.links == ("layer-0.safetensors", "layer-1.safetensors")
    assert not wanted(config, "vold", None)[1].links and not wanted(config, "generate_traces", first)[0].links
    assert [one.key for one in wanted(config, "sft", first)] == ["student.path"]
    assert [one.key for one in wanted(configuration(world, "objective=grpo"), "vold", first)] == ["vold.start"]
    assert not wanted(configuration(world, "traces.engine=dataset"), "generate_traces", first)


def test_a_rank_reads_from_copied_files_alone(world):
    """Every slice that the loader asks for on a node's ranks lies in a file that the node copies."""
    config, node = configuration(world), Node(range(2, 4), 4)
    files = needed(world / "teacher", config.parallel, node)
    arch = architecture.read(world / "teacher")
    ends = ("model.norm.weight", "lm_head.weight")
    asked = {name for name in hf_names(arch) if name.split(".")[2:3] in (["2"], ["3"]) or name in ends}
    entries = tensors.index(world / "teacher")
    assert {entries[name].file for name in asked if name in entries} == files


def test_hashes_of_the_lock_go_with_the_files_and_a_missing_checkpoint_is_named(world):
    entry = {"kind": "model", "path": f"{world}/teacher", "revision": None, "files": {"config.json": {"sha256": "ab"}}}
    (world / "a.lock").write_text(json.dumps({"needs": [entry]}))
    config = configuration(world, f"prefetch.lock={world}/a.lock")
    assert [one.sha256 for one in wanted(config, "vold", None)] == [{}, {"config.json": "ab"}]
    (world / "a.lock").write_text("[]")
    with pytest.raises(ConfigError, match="a lock file as recipes/prefetch"):
        wanted(config, "vold", None)
    with pytest.raises(ConfigError, match=r"teacher.path = [\s\S]*fetch it first"):
        wanted(configuration(world, "teacher.path=nobody/nothing"), "vold", None)
