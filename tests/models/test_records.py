"""What a step leaves behind about each rollout is what transformers computes for it."""

import json

import pytest

from tests.models.stages import REWARDS, SAMPLES, make_world, vold_steps
from tests.models.test_reweighing import log_probs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.mark.parametrize(
    ("ranks", "options"), [(1, ["vold.updates_per_step=2"]), (2, ["parallel=pp2"]), (2, []), (2, ["parallel.context=2"])]
)
def test_gaps_and_kl_of_each_rollout_are_transformers_in_every_layout(gloo, world, ranks, options):
    found = gloo(ranks).run(vold_steps, world, REWARDS, *options, "objective=vold")
    rollouts, fates = found[0]["recorded"][0]  # the first step: the weights are those of the checkpoint
    assert all(fates is None for rank in found[1:] for _, fates in rank["recorded"])
    answers = [(rollout.prompt_ids, rollout.response_ids) for rollout in rollouts]
    shared = found[0]["shared"]
    student = log_probs(f"{world}/student", answers, [True] * 4096, 1.0)  # over all that the engine can sample
    student_shared = log_probs(f"{world}/student", answers, shared, 1.0)
    teacher = log_probs(f"{world}/teacher", answers, shared, 1.0)
    for row, (rollout, fate) in enumerate(zip(rollouts, fates, strict=True)):
        assert fate.scored == (REWARDS[row] == 0)
        assert fate.trained == (row // SAMPLES != 2)  # the third group is all right
        if not fate.trained:
            assert fate.tokens is None
            continue
        gaps = [own - engine for own, engine in zip(student[row], rollout.logprobs, strict=True)]
        assert fate.tokens.gaps == pytest.approx(gaps, abs=1e-4)
        if fate.scored and (row < 8 or "vold.updates_per_step=2" not in options):  # the second update's weights have moved
            k2 = [(p - q) ** 2 / 2 for p, q in zip(student_shared[row], teacher[row], strict=True)]
            carry = [shared[i] for i in rollout.response_ids]
            assert [value is not None for value in fate.tokens.kl] == carry
            assert [value or 0.0 for value in fate.tokens.kl] == pytest.approx(k2, rel=1e-3, abs=1e-5)
    mismatch = found[-1]["metrics"][0]["mismatch"]
    sizes = [abs(gap) for fate in fates if fate.tokens for gap in fate.tokens.gaps]
    assert mismatch["mean"] == pytest.approx(sum(sizes) / len(sizes)) and mismatch["max"] == pytest.approx(max(sizes))


def test_a_record_says_what_was_asked_and_what_became_of_the_answer(tmp_path):
    from vold_nemo.data.prompts import Prompt
    from vold_nemo.data.rollouts import Fate, Rollout, TokenRecord, write_rollouts

    prompts = [Prompt("p0", [{"role": "user", "content": "1+1?"}], answer="2")]
    rollouts = [
        Rollout(0, k, [5], [7, 8], [-1.0, -2.0], text, "stop", reward=reward, reason="boxed", extracted=text)
        for k, (text, reward) in enumerate([("3", 0.0), ("2", 1.0), ("2", 1.0)])
    ]
    fates = [
        Fate(True, True, TokenRecord([0.5, -0.25], [0.125, None], -1.0)),
        Fate(False, True, TokenRecord([0.0, 0.1], None, 0.5)),
        Fate(False, False),
    ]
    file = write_rollouts(tmp_path, 3, rollouts, prompts, fates)
    wrong, right, untrained = [json.loads(line) for line in file.read_text().splitlines()]
    assert (wrong["prompt"], wrong["truth"], wrong["text"], wrong["reason"]) == ("1+1?", "2", "3", "boxed")
    assert (wrong["kl_sum"], wrong["kl_tokens"], wrong["gap_mean"], wrong["gap_max"]) == (0.125, 1, 0.375, 0.5)
    assert (wrong["kl"], wrong["gaps"], wrong["advantage"]) == ([0.125, None], [0.5, -0.25], -1.0)
    assert right["kl_sum"] is None and right["kl"] is None and right["gap_max"] == 0.1
    assert untrained["gap_mean"] is None and "gaps" not in untrained and untrained["response_ids"] == [7, 8]
    compact = write_rollouts(tmp_path, 4, rollouts, prompts, fates, by_token=False)
    assert not {"response_ids", "logprobs", "gaps", "kl"} & set(json.loads(compact.read_text().splitlines()[0]))
