"""What is shipped, rehearsed: every experiment for GPUs, a world of 1,024 ranks, every family of models."""

import pytest

from tests.rehearsal.worlds import SHORT, STUDENT, TEACHER, rehearse, write
from vold_nemo.config.compose import compose
from vold_nemo.megatron.architecture import FAMILIES
from vold_nemo.planning.plan import stage_gpus
from vold_nemo.rehearsal import engine
from vold_nemo.rehearsal.experiments import for_gpus

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def transformer_engine():
    """Its Python layer lies in the user's cache, on the path of rehearsals alone."""
    try:
        engine.cached()
    except RuntimeError as error:
        pytest.skip(f"Transformer Engine's wheel is not to be had: {error}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["sft", "vold"])
@pytest.mark.parametrize("name", for_gpus())
def test_an_experiment_has_no_violation(tmp_path, name, stage):
    """The first rank of stage 1, the last one of stage 2."""
    config = compose([f"experiment={name}"])
    rank = 0 if stage == "sft" else stage_gpus(config, stage) - 1
    done = rehearse(tmp_path / "out", f"experiment={name}", f"rehearse.stage={stage}", f"rehearse.rank={rank}",
                    "rehearse.micro_batches=2", "rehearse.engine=te")  # fmt: skip
    assert done.code == 0 and not done.found["violations"], done.said
    for row in done.found["phases"]:
        if row["planned_bytes"] and row["phase"] != "generate":
            assert row["peak_bytes"] == pytest.approx(row["planned_bytes"], rel=0.05), row["phase"]


@pytest.mark.timeout(600)
def test_a_rank_of_a_world_of_1024(tmp_path):
    done = rehearse(tmp_path / "out", "experiment=qwen2_5_vl_72b_from_235b", "rehearse.rank=1001", "rehearse.world=1024",
                    "parallel.pipeline=4", "parallel.expert=32", "rehearse.micro_batches=4", "rehearse.engine=te")  # fmt: skip
    assert done.code == 0 and not done.found["violations"], done.said
    assert done.found["place"] == {"tensor": 1, "context": 0, "data": 29, "pipeline": 3, "expert": 9}
    groups = done.found["groups"]  # the default group and one that is asked for by name have gloo; the others have NCCL alone
    assert groups["gloo"] <= 2 and groups["gloo_peers"] <= 2 * 1023 and groups["gloo_at_once"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_every_family_are_those_of_its_layers(tmp_path, family):
    """A missing or left-over parameter ends a rehearsal; experts are a teacher's alone."""
    mixture = FAMILIES[family].experts
    config = {**(TEACHER if mixture else STUDENT), "model_type": family}
    if not mixture and not FAMILIES[family].qkv_bias:
        config |= {"head_dim": 32, "tie_word_embeddings": False}
    if FAMILIES[family].nested:
        text = {**config, "model_type": f"{family}_text"}
        config = {"model_type": family, "tie_word_embeddings": config["tie_word_embeddings"], "text_config": text}
    teacher = write(tmp_path / "teacher", config)
    student = write(tmp_path / "student", STUDENT) if mixture else teacher
    done = rehearse(
        tmp_path / "out", *SHORT, f"student.path={student}", f"teacher.path={teacher}", "rehearse.engine=te",
        "rehearse.world=4", "rehearse.rank=3", "parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true",
        f"parallel.expert={2 if FAMILIES[family].experts else 1}",
    )  # fmt: skip
    assert done.code == 0 and not done.found["violations"], done.said
