"""The mask is a saving: what reaches the teacher, what is trained on, and that neither changes a gradient."""

import numpy as np
import pytest

from tests.covering import covering
from tests.models.stages import REWARDS, SAMPLES, FixedSampler, vold_steps


def test_only_tokens_of_wrong_rollouts_are_scored(gloo, world):
    said = gloo(1).run(vold_steps, world, REWARDS, "objective=vold_reverse")[0]
    for step, metrics in enumerate(said["metrics"]):
        table, _ = FixedSampler().sample(step)
        wrong = table.lengths[table["reward"] == 0]
        assert metrics["teacher_tokens"] == int(wrong.sum()) > 0
        assert metrics["scored_rollouts"] == len(wrong)


def test_an_all_right_group_costs_no_training_token(gloo, world):
    said = gloo(1).run(vold_steps, world, REWARDS, "objective=vold_reverse")[0]
    for metrics in said["metrics"]:
        assert metrics["skipped_groups"] == 1
        assert metrics["trained_rollouts"] == len(REWARDS) - SAMPLES


def test_unmasked_kl_scores_everything(gloo, world):
    said = gloo(1).run(vold_steps, world, REWARDS, "objective=vold_reverse", "objective.kl.mask=none")[0]
    assert all(metrics["scored_rollouts"] == len(REWARDS) for metrics in said["metrics"])


@pytest.mark.parametrize(
    ("objective", "average"),
    covering(["vold_reverse", "vold", "grpo"], ["token", "sequence", "constant"], strength=1),
)
def test_skipping_changes_no_gradient(gloo, world, objective, average):
    options = [f"objective={objective}", f"objective.policy.average={average}", f"objective.kl.average={average}"]
    skip, whole = (
        gloo(2).run(vold_steps, world, REWARDS, *options, f"objective.skip={flag}")[0] for flag in ("true", "false")
    )
    for a, b in zip(skip["metrics"], whole["metrics"], strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
        assert a["trained_rollouts"] < b["trained_rollouts"] == len(REWARDS)
    for name, tensor in skip["weights"].items():
        np.testing.assert_allclose(tensor, whole["weights"][name], atol=2e-7, err_msg=name)


def test_teacher_stays_frozen_without_a_byte_of_gradient(gloo, world):
    for said in gloo(2).run(vold_steps, world, REWARDS, "objective=vold_reverse", "parallel=tp2"):
        before, after = said["teacher"]
        assert before == after
        assert said["memory"]["gradients"] == 0 < said["memory"]["weights"]


def test_grpo_loads_no_teacher_and_needs_no_path(gloo, world):
    said = gloo(1).run(vold_steps, world, REWARDS, "objective=grpo", "teacher.path=/nowhere")[0]
    assert said["teacher"] == (None, None)
    assert all(metrics["teacher_tokens"] == 0 and metrics["loss_kl"] == 0 for metrics in said["metrics"])


def test_right_answers_alone_teach_the_masked_student_nothing(gloo, world):
    said = gloo(1).run(vold_steps, world, (1,) * 16, "objective=vold_reverse")[0]
    assert all(metrics["grad_norm"] == 0 and metrics["teacher_tokens"] == 0 for metrics in said["metrics"])


def test_an_fp8_teacher_teaches_in_half_the_bytes(gloo, world):
    options = ("objective=vold_reverse", "parallel=tp2")
    fp8, bf16 = (
        gloo(2).run(vold_steps, world, REWARDS, *options, f"teacher.precision={precision}", f"teacher.fp8.backend={backend}")
        for precision, backend in (("fp8", "emulated"), ("bf16", "te"))
    )
    for a, b in zip(fp8, bf16, strict=True):
        assert a["memory"]["gradients"] == 0 and a["memory"]["weights"] < b["memory"]["weights"]
        for step, other in zip(a["metrics"], b["metrics"], strict=True):
            assert step["teacher_tokens"] == other["teacher_tokens"] > 0
            assert step["kl_mean"] != other["kl_mean"]
            assert step["kl_mean"] == pytest.approx(other["kl_mean"], rel=0.2)


def held_at_each_loss(folder):
    """Hidden states of the teacher that are still held when the loss of each scored micro-batch begins."""
    from tests.models.stages import build_vold, configuration, layout_of
    from vold_nemo.megatron import parallel
    from vold_nemo.models import vold

    config = configuration(folder, "rollout.probe_tolerance=1e9", "vold.micro_batch_tokens=64", "objective.kl.mask=none")
    model = build_vold(config, layout_of(config), FixedSampler())
    states, loss, kept, held = model.teachers.hidden_states, vold.vold_loss, [], []

    def hidden_states(batches):
        kept[:] = [states(batches)]
        return kept[0]

    def counted(*args, teacher=None, **options):
        if teacher is not None:
            held.append(sum(one is not None for one in kept[0]))
        return loss(*args, teacher=teacher, **options)

    model.teachers.hidden_states, vold.vold_loss = hidden_states, counted
    try:
        model.train_step(0)
    finally:
        vold.vold_loss = loss
        parallel.destroy()
    return held


def test_hidden_states_are_freed_one_by_one_as_their_losses_are_formed(gloo, world):
    held = gloo(1).run(held_at_each_loss, world)[0]
    assert len(held) > 1 and held == list(range(len(held) - 1, -1, -1))
