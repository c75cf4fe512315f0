"""Masks and rewards that read the teacher: the step's weights are those of transformers' own log-probs."""

import math

import numpy as np
import pytest

from tests.models.stages import REWARDS, SAMPLES, FixedSampler, build_vold, configuration, layout_of

BETA = 0.05
SHAPED = ["objective.kl.estimator=k1_reward", "objective.kl.reward_placement=before"]


def weights_of_a_step(folder, *overrides, vocabulary=53):
    """What the loss of step 0 read: advantages and KL weights by rollout; and the step's metrics.  Ids from 53 on the teacher
    does not have."""
    from vold_nemo.megatron import parallel

    config = configuration(folder, "rollout.probe_tolerance=1e9", f"objective.kl.beta.value={BETA}", *overrides)
    model = build_vold(config, layout_of(config), FixedSampler(vocabulary=vocabulary))
    metrics = model.train_step(0)
    (step,), shared = model.sampler.recorded, model.contract.shared.tolist()
    seen = {
        row: (float(step["advantage"][row]), float(step["kl_weight"][row])) for row in range(len(step)) if step["trained"][row]
    }
    parallel.destroy()
    return seen, metrics, answers(step), shared


def answers(step):
    """(prompt, response) ids of each rollout."""
    return [(step.prompts[row // step.samples].tolist(), step.responses[row].tolist()) for row in range(len(step))]


def sampled_beyond(folder, *overrides):
    """A step whose rollouts hold ids that only the student has."""
    return weights_of_a_step(folder, *overrides, vocabulary=60)


def opened(path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if "vl" in AutoConfig.from_pretrained(path).model_type else AutoModelForCausalLM
    return kind.from_pretrained(path, dtype="float32")


def tables(model, rollouts, shared, temperature):
    """Per rollout, [tokens of the response, ids] log-probs over the shared ids, -inf for others; by transformers."""
    import torch

    found = []
    for prompt, response in rollouts:
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double() / temperature
        outside = ~torch.tensor(shared[: logits.shape[1]] + [False] * (logits.shape[1] - len(shared)))
        found.append(logits.masked_fill(outside, -torch.inf).log_softmax(-1))
    return found


def log_probs(path, rollouts, shared, temperature):
    """Per rollout, log-probs of the response's tokens over the shared ids, 0 for others."""
    found = zip(tables(opened(path), rollouts, shared, temperature), rollouts, strict=True)
    return [[float(t[at, i]) if shared[i] else 0.0 for at, i in enumerate(response)] for t, (_, response) in found]


def groups(values):
    return np.array(values).reshape(-1, SAMPLES)


@pytest.mark.parametrize("average", ["sequence", "token", "constant"])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_kl_inside_the_rewards_is_standardised_with_them(gloo, world, average, updates):
    options = [*SHAPED, f"objective.kl.average={average}", "objective.kl.teacher_temperature=1.5", "rollout.temperature=0.8"]
    ((seen, metrics, rollouts, shared),) = gloo(1).run(
        weights_of_a_step, world, *options, f"vold.updates_per_step={updates}"
    )
    student = log_probs(f"{world}/student", rollouts, shared, 0.8)
    teacher = log_probs(f"{world}/teacher", rollouts, shared, 1.5)
    k1 = [sum(p) - sum(q) for p, q in zip(student, teacher, strict=True)]
    counts = np.array([sum(shared[i] for i in response) for _, response in rollouts])
    count = len(counts) // updates
    share = counts.reshape(updates, count)
    per = {"sequence": share, "token": share.sum(1, keepdims=True) / count * np.ones_like(share), "constant": 12}[average]
    penalty = BETA * (1 - np.array(REWARDS)) * np.array(k1) / np.broadcast_to(per, share.shape).reshape(-1)
    shaped = groups(np.array(REWARDS) - penalty)
    expected = (shaped - shaped.mean(1, keepdims=True)) / (shaped.std(1, ddof=1, keepdims=True) + 1e-4)
    expected[2] = 0.0  # all right: nothing to compare
    assert sorted(seen) == [row for row in range(16) if row // SAMPLES != 2]  # the all-wrong group has advantages now
    for row, (advantage, _) in seen.items():
        assert advantage == pytest.approx(expected.flatten()[row], rel=1e-3, abs=1e-4)
    tokens = [p - q for row, r in enumerate(REWARDS) if not r for p, q in zip(student[row], teacher[row], strict=True)]
    assert metrics["loss_kl"] == 0.0
    if updates == 1:
        assert metrics["kl_mean"] == pytest.approx(sum(tokens) / counts[np.array(REWARDS) == 0].sum(), rel=1e-4)
        assert metrics["kl_min"] == pytest.approx(min(tokens), rel=1e-4)


def test_a_soft_mask_follows_the_teachers_perplexity_within_each_group(gloo, world):
    ((hard, *_),) = gloo(1).run(weights_of_a_step, world, "objective.kl.mask=reward")
    ((soft, _, rollouts, shared),) = gloo(1).run(weights_of_a_step, world, "objective.kl.mask=perplexity")
    teacher = log_probs(f"{world}/teacher", rollouts, shared, temperature=1.0)
    perplexity = [
        math.exp(-sum(said) / sum(shared[i] for i in response))
        for said, (_, response) in zip(teacher, rollouts, strict=True)
    ]
    for row, (advantage, weight) in soft.items():
        group = range(row // SAMPLES * SAMPLES, row // SAMPLES * SAMPLES + SAMPLES)
        least = min((perplexity[i] for i in group if not REWARDS[i]), default=1.0)
        assert weight == pytest.approx(hard[row][1] * least / perplexity[row], rel=1e-4) and advantage == hard[row][0]
    # 7 wrong ones; in each of 3 groups the one that the teacher knows best keeps its weight
    assert sum(hard[row][1] > soft[row][1] > 0 for row in soft) == 4


@pytest.mark.parametrize("masked", [True, False])
def test_an_exact_kl_reaches_tokens_that_the_teacher_lacks_where_they_are_not_masked(gloo, world, masked):
    """A step's loss and gradient are transformers', over every token of the wrong rollouts or over those both models have."""
    import torch

    step = ["objective=distillation_only", "objective.kl.estimator=reverse", "objective.kl.mask=reward"]
    ((_, found, rollouts, shared),) = gloo(1).run(
        sampled_beyond, world, *step, f"objective.kl.mask_one_sided={str(masked).lower()}"
    )
    student, teacher = opened(f"{world}/student"), opened(f"{world}/teacher")
    student.get_input_embeddings().padding_idx = None  # transformers gives a sampled padding id's embedding no gradient
    ids = [i for i, both in enumerate(shared) if both]
    with torch.no_grad():
        said = tables(teacher, rollouts, shared, temperature=1.0)
    loss, values, left_out = 0.0, [], 0
    for reward, p, q, (_, response) in zip(
        REWARDS, tables(student, rollouts, shared, temperature=1.0), said, rollouts, strict=True
    ):
        if not reward:
            kl = (p[:, ids].exp() * (p[:, ids] - q[:, ids])).sum(-1)
            kept = kl[[at for at, i in enumerate(response) if shared[i] or not masked]]
            loss, left_out = loss + BETA * kept.mean() / len(REWARDS), left_out + len(kl) - len(kept)
            values += kept.tolist()
    loss.backward()
    gradients = [p.grad.double() for p in student.parameters() if p.grad is not None]
    assert (left_out > 0) == masked
    assert found["loss_kl"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["grad_norm"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradients)), rel=1e-5)
    assert found["kl_mean"] == pytest.approx(np.mean(values), rel=1e-4)
    assert found["kl_min"] == pytest.approx(min(values), rel=1e-4)


def test_where_beta_is_off_the_teacher_rests_and_the_step_is_grpos(gloo, world):
    ((off, metrics, *_),) = gloo(1).run(weights_of_a_step, world, "objective.kl.beta.off_step=0")
    ((grpo, plain, *_),) = gloo(1).run(weights_of_a_step, world, "objective=grpo")
    assert metrics["teacher_tokens"] == 0 and metrics["skipped_groups"] == plain["skipped_groups"] == 2
    assert off == grpo and metrics["loss"] == plain["loss"] and metrics["grad_norm"] == plain["grad_norm"]
