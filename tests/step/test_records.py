"""What a step leaves behind about each rollout is what transformers computes for it."""

import json
import math

import pytest
import torch

from tests.models.stages import REWARDS, SAMPLES, vold_steps
from tests.models.test_reweighing import SHAPED, log_probs
from tests.models.test_reweighing import answers as answers_of
from vold_nemo.step import Step, records
from vold_nemo.step.metrics import gaps


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (1, ["vold.updates_per_step=2"]), (2, ["parallel=pp2"]), (2, []), (2, ["parallel.context=2"]),
        (2, ["parallel.context=2", *SHAPED]),
    ],
)
def test_gaps_and_kl_of_each_rollout_are_transformers_in_every_layout(gloo, world, ranks, options):
    found = gloo(ranks).run(vold_steps, world, REWARDS, *options, "objective=vold")
    step = found[0]["recorded"][0]  # the first step: the weights are those of the checkpoint
    for rank in found[1:]:  # columns are whole everywhere
        assert gaps(rank["recorded"][0]).equal(gaps(step)) or torch.allclose(
            gaps(rank["recorded"][0]), gaps(step), atol=1e-12, equal_nan=True
        )
    answers = answers_of(step)
    shared = found[0]["shared"]
    student = log_probs(f"{world}/student", answers, [True] * 4096, 1.0)  # over all that the engine can sample
    student_shared = log_probs(f"{world}/student", answers, shared, 1.0)
    teacher = log_probs(f"{world}/teacher", answers, shared, 1.0)
    at, gap = step.responses.offsets.tolist(), gaps(step).tolist()
    for row in range(len(step)):
        span = slice(at[row], at[row + 1])
        assert step["scored"][row] == (REWARDS[row] == 0)
        assert step["trained"][row] == (row // SAMPLES != 2)  # the third group is all right
        if not step["trained"][row]:
            assert all(map(math.isnan, gap[span]))
            continue
        expected = [own - engine for own, engine in zip(student[row], step["engine"][span].tolist(), strict=True)]
        assert gap[span] == pytest.approx(expected, abs=1e-4)
        if step["scored"][row] and (row < 8 or "vold.updates_per_step=2" not in options):  # the second update's have moved
            k1 = [p - q for p, q in zip(student_shared[row], teacher[row], strict=True)]
            expected = k1 if SHAPED[0] in options else [value**2 / 2 for value in k1]
            kl = step["kl"][span]
            assert (~kl.isnan()).tolist() == [shared[i] for i in step.responses[row].tolist()]
            assert kl.nan_to_num(0.0).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    mismatch = found[-1]["metrics"][0]["mismatch"]
    sizes = [abs(value) for value in gap if not math.isnan(value)]
    assert mismatch["mean"] == pytest.approx(sum(sizes) / len(sizes)) and mismatch["max"] == pytest.approx(max(sizes))


def judged_step():
    labels = {
        "id": ["p0"] * 3, "prompt": ["1+1?"] * 3, "truth": ["2"] * 3, "verifier": [None] * 3, "text": ["3", "2", "2\ud800"],
        "reason": ["boxed"] * 3, "extracted": ["3", "2", None],
    }  # fmt: skip
    nan = math.nan
    step = Step.of(
        [[5, 6]], [[7, 8]] * 3, 3, labels, engine=[[-1.0, -2.0]] * 3, reward=[0.0, 1.0, 1.0], sample=[0, 1, 2],
        prompt=[0, 0, 0], truncated=[False, False, True], scored=[True, False, False], trained=[True, True, False],
        advantage=[-1.0, 0.5, 0.0], kl=[[0.125, nan], [nan, nan], [nan, nan]],
        trainer=[[-0.5, -2.25], [-1.0, -1.9], [nan, nan]],
    )  # fmt: skip
    step["version"] = 12
    return step


def test_a_record_says_what_was_asked_and_what_became_of_the_answer(tmp_path):
    file = records.write(judged_step(), tmp_path / "rollouts" / "step_000003.jsonl")
    wrong, right, untrained = [json.loads(line) for line in file.read_text().splitlines()]
    assert (wrong["prompt"], wrong["truth"], wrong["text"], wrong["reason"]) == ("1+1?", "2", "3", "boxed")
    assert (wrong["kl_sum"], wrong["kl_tokens"], wrong["gap_mean"], wrong["gap_max"]) == (0.125, 1, 0.375, 0.5)
    assert (wrong["kl"], wrong["gaps"], wrong["advantage"]) == ([0.125, None], [0.5, -0.25], -1.0)
    assert right["kl_sum"] is None and right["kl"] is None and right["gap_max"] == pytest.approx(0.1)
    assert untrained["gap_mean"] is None and "gaps" not in untrained and untrained["response_ids"] == [7, 8]
    assert (wrong["finish"], untrained["finish"], wrong["version"], wrong["prompt_ids"]) == ("stop", "length", 12, [5, 6])
    compact = records.write(judged_step(), tmp_path / "step_000004.jsonl", by_token=False)
    assert not {"response_ids", "logprobs", "gaps", "kl", "version"} & set(json.loads(compact.read_text().splitlines()[0]))


def test_what_was_written_is_read_as_the_same_table(tmp_path):
    step = judged_step()
    found = records.read(records.write(step, tmp_path / "step_000003.jsonl"))
    assert found.labels == step.labels and found.samples == 3
    assert found.prompts[0].tolist() == [5, 6] and found.responses.flat.equal(step.responses.flat)
    for name in ("engine", "kl", "trainer", "version", "reward", "truncated", "scored", "trained", "advantage", "sample"):
        torch.testing.assert_close(found[name], step[name], atol=1e-6, rtol=0, equal_nan=True)
    with pytest.raises(ValueError, match="no step with its tokens"):
        records.read(records.write(step, tmp_path / "step_000004.jsonl", by_token=False))


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    step = judged_step()
    step["engine"][0] = step["trainer"][3] = math.nan
    file = records.write(step, tmp_path / "step_000003.jsonl")
    assert "NaN" not in file.read_text()
    found = records.read(file)
    assert found["engine"].isnan().tolist() == step["engine"].isnan().tolist()
    assert found["trainer"].isnan().tolist() == [True, False, False, True, True, True]


@pytest.mark.parametrize("text", ["", "[1]\n", "{\n", '{"sample": 0}\n', "\u00e9\n"])
def test_a_file_that_is_no_step_is_named(tmp_path, text):
    (tmp_path / "step.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"step\.jsonl is no step with its tokens"):
        records.read(tmp_path / "step.jsonl")
