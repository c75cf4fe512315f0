"""Packed rows, context slices and recomputation change where and when something is computed, and no loss or gradient."""

import numpy as np
import pytest

from tests.models.stages import REWARDS, sft_trained, vold_steps

PACKED = ["sft.packing=true", "sft.micro_batch=1", "sft.max_length=64", "sft.pack_length=80"]
CONTEXT = ["parallel.context=2"]
TP2_SP, PP2 = ["parallel=tp2_sp"], ["parallel=pp2"]
STAGE_1 = {
    "packed": (1, PACKED),
    "packed tp2_sp": (2, [*PACKED, *TP2_SP]),
    "packed pp2": (2, [*PACKED, *PP2]),
    "packed dp2": (2, PACKED),
    "context": (2, CONTEXT),
    "packed context": (2, [*PACKED, *CONTEXT]),
    "packed context tp2_sp": (4, [*PACKED, *CONTEXT, *TP2_SP]),
    "context pp2": (4, [*CONTEXT, *PP2]),
    "selective": (1, ["parallel.recompute=selective"]),
    "full, packed context": (2, ["parallel.recompute=full", *PACKED, *CONTEXT]),
    "selective tp2_sp": (2, ["parallel.recompute=selective", *TP2_SP]),
    "full pp2": (2, ["parallel.recompute=full", *PP2]),
}
LONG = {"packed pp2", "packed dp2", "context", "context pp2"}
REVERSE = "objective=vold_reverse"
BEFORE = ["objective.kl.estimator=k1_reward", "objective.kl.reward_placement=before", "objective.kl.beta.value=0.1"]
STAGE_2 = {
    "context": (2, [REVERSE], CONTEXT),
    "context tp2_sp": (4, [REVERSE], [*CONTEXT, *TP2_SP]),
    "context, late weights": (
        2, ["objective=vold", *BEFORE, "objective.kl.mask=perplexity", "vold.updates_per_step=2"], CONTEXT,
    ),
    "context, gspo": (
        2, ["objective=vold", "objective.policy.loss=gspo", "objective.correction.mode=sequence", "vold.updates_per_step=2"],
        CONTEXT,
    ),
    "context, returns-to-go, masked": (
        2, ["objective=vold", "objective.kl.estimator=k1_reward", "objective.kl.reward_horizon=return_to_go",
            "objective.correction.mode=sequence_mask"], CONTEXT,
    ),
    "context tp2_sp, gspo, returns-to-go": (
        4, ["objective=vold", "objective.policy.loss=gspo", "objective.kl.estimator=k1_reward",
            "objective.kl.reward_horizon=return_to_go"], [*CONTEXT, *TP2_SP],
    ),
    "full": (1, [REVERSE], ["parallel.recompute=full"]),
    "selective tp2_sp": (2, [REVERSE], ["parallel.recompute=selective", *TP2_SP]),
}  # fmt: skip
STAGE_2_LONG = {"context tp2_sp", "context tp2_sp, gspo, returns-to-go", "full"}


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def plain(world, gloo, known):
    """Results of one rank without any of it, by the options that define the loss."""

    def run(job, *args):
        key = (job.__name__, args)
        if key not in known:
            known[key] = gloo(1).run(job, world, *args)[0]
        return known[key]

    return run


def assert_same(found, expected, keys):
    for step, other in zip(found["metrics"], expected["metrics"], strict=True):
        np.testing.assert_allclose([step[k] for k in keys], [other[k] for k in keys], rtol=1e-5, atol=1e-6, err_msg=keys)
    for name, tensor in expected["weights"].items():
        np.testing.assert_allclose(found["weights"][name], tensor, atol=1e-6, err_msg=name)


def marked(cases, long):
    return [pytest.param(name, marks=[pytest.mark.long] if name in long else []) for name in cases]


@pytest.mark.parametrize("name", marked(STAGE_1, LONG))
def test_stage_1_moves_the_weights_as_one_padded_rank_does(gloo, world, plain, name):
    ranks, options = STAGE_1[name]
    for found in gloo(ranks).run(sft_trained, world, *options):
        assert_same(found, plain(sft_trained), ("loss", "grad_norm", "tokens"))
        if "packed" in name:
            assert found["metrics"][0]["packing_efficiency"] > 0.6
            assert found["metrics"][0]["padding_efficiency"] > 0.75


@pytest.mark.parametrize("name", marked(STAGE_2, STAGE_2_LONG))
def test_stage_2_moves_the_weights_as_one_plain_rank_does(gloo, world, plain, name):
    ranks, objective, options = STAGE_2[name]
    expected = plain(vold_steps, REWARDS, *objective)
    for found in gloo(ranks).run(vold_steps, world, REWARDS, *objective, *options):
        keys = ("loss", "kl_mean", "entropy", "grad_norm", "teacher_tokens", "trained_rollouts")
        assert_same(found, expected, keys)
