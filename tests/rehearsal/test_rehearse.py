"""Rehearsals through the command, on Transformer Engine's own Python layer; what they must catch, they name."""

import shutil

import pytest

from tests.rehearsal.worlds import ROOT, SHORT, STUDENT, TEACHER, rehearse, write
from vold_nemo.rehearsal import engine


@pytest.fixture(scope="module")
def transformer_engine():
    """Its Python layer lies in the user's cache, on the path of rehearsals alone."""
    try:
        engine.cached()
    except RuntimeError as error:
        pytest.skip(f"Transformer Engine's wheel is not to be had: {error}")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Keys that name a dense student and a teacher with experts."""
    folder = tmp_path_factory.mktemp("small")
    student, teacher = write(folder / "student", STUDENT), write(folder / "teacher", TEACHER)
    return (*SHORT, f"student.path={student}", f"teacher.path={teacher}", "rehearse.engine=te")


PIPELINE = (  # the last stage of the pipeline, not the first rank of its experts
    "rehearse.world=8", "rehearse.rank=7", "parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true",
    "parallel.expert=4", "teacher.precision=fp8", "vold.optimizer.distributed=true",
)  # fmt: skip


def test_stage_1_of_the_paper_is_as_planned(transformer_engine, tmp_path):
    done = rehearse(tmp_path / "out", "experiment=paper_3b_h100", "rehearse.stage=sft", "rehearse.micro_batches=1",
                    "rehearse.engine=te")  # fmt: skip
    assert done.code == 0, done.said
    assert done.found["layers"].startswith("Transformer Engine") and not done.found["violations"]
    train = done.phase("train")
    activations = sum(train["planned_parts"][part] for part in ("activations", "objective"))
    assert train["peak_bytes"] - done.phase("data")["peak_bytes"] == pytest.approx(activations, rel=0.03)
    # Fused: of the feed-forward gate and up are kept, and their product; gradients are added up by the products themselves.
    assert activations < 13.9 * 2**30
    assert not [one for one in train["holders"] if "mlp.py" in one["place"] or "autograd" in one["place"]]
    saving, (copied,) = done.phase("checkpoint"), done.found["host"]  # to the files, once from the GPU and once from a copy
    assert saving["peak_bytes"] <= done.phase("agree")["peak_bytes"] and not saving["made_in"].get("checkpoint")
    assert copied["peak_bytes"] == pytest.approx(copied["planned_bytes"], rel=0.001)


def test_stage_2_with_experts_a_pipeline_and_everything_that_leaves(transformer_engine, small, tmp_path):
    done = rehearse(
        tmp_path / "out", *small, *PIPELINE, "rollout=vllm", "rollout.sleep=true", "vold.offload.optimizer=true",
        "vold.offload.gradients=true", "teacher.offload=true", "rollout.vllm.memory_share=0.1", "vold.updates_per_step=2",
    )  # fmt: skip
    assert done.code == 0 and not done.found["violations"], done.said
    # The engine sleeps before anything else is built; gradients and optimizer are away while it wakes.
    assert done.phase("student")["made_in"].get("engine", 0) < 0.01 * done.phase("engine")["peak_bytes"]
    assert done.phase("generate")["made_in"]["optimizer"] < 1.1 * done.found["held"]["parameters"]
    flops = done.phase("teacher")["flops"]
    assert flops["multi_tensor_gemm float8_e4m3fn"] > 0 and flops["cublas_gemm float8_e4m3fn"] > 0
    assert {one["link"] for one in done.found["collectives"] if one["device"] == "cuda"} == {"node"}
    assert not [one for one in done.found["waits"] if "pipeline_parallel" in one["place"]]  # for a shape, or behind a tensor
    assert _waits_of_micro_batches(done.found) == {"counting.py": 2.0}  # of two updates; one is counted in "run"


@pytest.mark.long
@pytest.mark.parametrize("stage", ["sft", "vold"])
def test_virtual_stages_are_as_planned_and_wait_for_no_shape(transformer_engine, small, tmp_path, stage):
    for rank in (0, 7):  # embedding, LM head
        done = rehearse(
            tmp_path / f"out{rank}", *small, *PIPELINE, "sft.packing=true", "parallel.virtual=2", f"rehearse.stage={stage}",
            f"rehearse.rank={rank}", "rehearse.micro_batches=4",
        )  # fmt: skip
        assert done.code == 0 and not done.found["violations"], done.said
        assert not [one for one in done.found["waits"] if "pipeline_parallel" in one["place"]]
        assert [one for one in done.found["collectives"] if one["phase"] == "train" and "recv" in one["operation"]]


def test_packed_rows_and_slices_of_sequences(transformer_engine, small, tmp_path):
    done = rehearse(
        tmp_path / "out", *small, "rehearse.stage=sft", "rehearse.world=4", "rehearse.rank=3", "parallel.tensor=2",
        "parallel.sequence=true", "parallel.context=2", "sft.packing=true", "sft.pack_length=1024", "sft.max_length=512",
    )  # fmt: skip
    assert done.code == 0 and not done.found["violations"], done.said
    assert done.found["place"]["context"] == 1 and done.phase("train")["flops"]
    assert _waits_of_micro_batches(done.found) == {"counting.py": 1.0}


def _waits_of_micro_batches(found: dict) -> dict[str, float]:
    """For each micro-batch that is trained on, by file: what the model, the objective and the table wait for."""
    run, told = found["micro_batches"]["run"], {}
    for one in found["waits"]:
        file = one["place"].rpartition("/")[2].partition(":")[0]
        once = "transformer_engine/pytorch/utils.py" in one["place"] or "objective/vocabulary.py" in one["place"]
        inside = any(part in one["place"] for part in ("build.py", "layers.py", "objective/", "step/", "sequences.py"))
        once = once or ("step/table.py" in one["place"] and one["count"] == 1)  # a new column, empty
        if one["phase"] == "train" and inside and not once:
            told[file] = told.get(file, 0.0) + one["count"] / run
    return told


# -- what must be caught, by name: changes of the code that are made in a copy of it -------------------------------------

MUTATIONS = {
    "a tensor of the CPU in the loss": (
        "vold_nemo/models/vold.py", "return summed(value, said)", "return summed(value * torch.ones(2).sum(0, True), said)",
        PIPELINE, "mixed devices",
    ),
    "hidden states kept alive": (
        "vold_nemo/models/vold.py", "            del hidden  # before the engine wakes\n", "            self.kept = hidden\n",
        PIPELINE, "outlives its phase",
    ),
    "a missing del": (
        "vold_nemo/models/vold.py", "            del hidden  # before the engine wakes\n", "", PIPELINE, "outlives its phase",
    ),
    "a wrong name of a fused expert": (
        "vold_nemo/megatron/weights.py", "if known == place.fused:", "if False:", PIPELINE, "no parameter decoder.layers",
    ),
    "a tensor of the CPU on NCCL": (
        "vold_nemo/megatron/training.py", "    dist.all_reduce(totals)\n",
        "    dist.all_reduce(totals.cpu(), group=layout.model_group)\n", PIPELINE, "wrong backend",
    ),
    "a product of mixed types": (
        "vold_nemo/objective/head.py", "return torch.mm(hidden, head.t(), out_dtype=out.dtype, out=out)",
        "return out.copy_(torch.mm(hidden.float(), head.t()))", PIPELINE, "mixed types",
    ),
    "a collective of a tensor that is not contiguous": (
        "vold_nemo/megatron/training.py", "    dist.all_reduce(totals)\n",
        "    dist.all_reduce(totals)\n    dist.all_reduce(torch.zeros(2, 3, device=layout.device).t())\n", PIPELINE,
        "wrong collective",
    ),
    "an optimizer that stays": (
        "vold_nemo/models/handover.py", "movable.leave()\n", "movable.leave() if name != 'optimizer' else None\n",
        (*PIPELINE, "vold.offload.optimizer=true"), "did not leave",
    ),
    "a parameter born on the CPU": (
        "vold_nemo/megatron/build.py", "return torch.device(layout.device) if arch.experts else", "return", PIPELINE,
        "parameter on the CPU",
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("mutation", [None, *MUTATIONS], ids=["none", *(name.replace(" ", "_") for name in MUTATIONS)])
def test_a_mutation_is_caught_by_name(transformer_engine, small, tmp_path, mutation):
    root = tmp_path / "copy"
    for folder in ("vold_nemo", "recipes", "conf"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    file, before, after, layout, word = MUTATIONS.get(mutation, (None, None, None, PIPELINE, None))
    if mutation:
        code = (root / file).read_text()
        assert code.count(before) == 1
        (root / file).write_text(code.replace(before, after))
    few = ("rehearse.outlives_mib=1.5", "teacher.fp8.probe_tokens=0")
    done = rehearse(tmp_path / "out", *small, *layout, *few, root=root)
    if mutation is None:
        assert done.code == 0, done.said
    else:
        assert done.code == 2 and word in done.said, done.said
