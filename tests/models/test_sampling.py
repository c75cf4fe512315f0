"""On-policy data: token budget, refilled groups, cut-off answers and validation, each the same however often it is run."""

import contextlib
import hashlib
import json
import types

import pytest
import torch

from tests.models.stages import configuration
from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.data.prompts import Prompt
from vold_nemo.data.rejected import Rejected
from vold_nemo.models.sampling import Sampler
from vold_nemo.models.terms import step_options
from vold_nemo.rewards import Verdict
from vold_nemo.rollout.engine import Completion
from vold_nemo.step import Step, StepOptions, select, silent_groups

ANSWER = 1000  # ids from here on are answers
SAMPLES, LONGEST = 4, 64


def dice(*what) -> int:
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:4], "big")


class ScriptedEngine:
    """Knows how long each answer would be, and draws tokens from (seed, key, sample) as a real one does."""

    version, stop_ids = 0, (ANSWER,)

    def __init__(self):
        self.calls = []

    def close(self):
        pass

    def length(self, place: int, sample: int) -> int:
        return 1 + dice(place, sample) % (3 * LONGEST // 2)

    def generate(self, prompts, sampling, *, expect_version=None, progress=None):
        self.calls.append((len(prompts), sampling.max_tokens))
        found = []
        for index, prompt in enumerate(prompts):
            done = sum(i >= ANSWER for i in prompt.ids)
            for k in range(sampling.samples):
                place, sample = divmod(prompt.key, SAMPLES) if done else (prompt.key, k)
                left = self.length(place, sample) - done
                count = min(left, sampling.max_tokens)
                ids = [ANSWER + 1 + dice(sampling.seed, prompt.key, k, t) % 9 for t in range(count)]
                if left <= sampling.max_tokens:
                    ids[-1] = ANSWER
                found.append(
                    Completion(index, k, ids, [-1.0] * count, "stop" if ids[-1] == ANSWER else "length")
                )
        return found


class Tokenizer:
    """The prompt's own text is its one id; an answer is right in one of two cases, by its tokens."""

    def apply_chat_template(self, messages, **_):
        return messages[-1]["content"]

    def __call__(self, text, **_):
        return {"input_ids": [int(text)]}

    def decode(self, ids, **_):
        return rf"\boxed{{{dice(*ids) % 2}}}"


def sampler_of(*overrides, rank=0, world=1, prompts=40):
    config = compose(
        [
            "experiment=miniature", "vold.prompts_per_step=12", f"rollout.samples_per_prompt={SAMPLES}",
            f"rollout.max_tokens={LONGEST}", *overrides,
        ]
    )  # fmt: skip
    layout = types.SimpleNamespace(rank=rank, world=world, device=torch.device("cpu"))
    asked = [Prompt(f"p{i}", [{"role": "user", "content": str(i)}], answer="1") for i in range(prompts)]
    return Sampler(ScriptedEngine(), Tokenizer(), asked, {}, config, layout)


def sampled(*overrides):
    """One step's rollouts, on every rank of a gloo world."""
    import torch.distributed as dist

    sampler = sampler_of(*overrides, rank=dist.get_rank(), world=dist.get_world_size())
    step, _ = sampler.sample(3, untimed, lambda step: [])
    sampler.close()
    return answers(step)


def untimed(phase):
    return contextlib.nullcontext()


def answers(step):
    """(prompt, sample, response, cut off) of each rollout."""
    prompt, sample, cut = (step[name].tolist() for name in ("prompt", "sample", "truncated"))
    return [(prompt[row], sample[row], step.responses[row].tolist(), cut[row]) for row in range(len(step))]


@pytest.mark.parametrize("budget", [48, 500, 1200, 4000])
def test_a_token_budget_cuts_the_longest_answers_at_one_length_on_any_number_of_ranks(gloo, budget):
    found = gloo(2).run(sampled, f"rollout.token_budget={budget}")
    assert found[0] == found[1] == gloo(1).run(sampled, f"rollout.token_budget={budget}")[0]
    engine = ScriptedEngine()
    wanted = [min(LONGEST, engine.length(place, sample)) for place in range(12) for sample in range(SAMPLES)]
    cut = max(at for at in range(1, LONGEST + 1) if at == 1 or sum(min(n, at) for n in wanted) <= budget)  # water-filling
    assert [len(ids) for _, _, ids, _ in found[0]] == [min(n, cut) for n in wanted]
    assert sum(len(ids) for _, _, ids, _ in found[0]) <= budget
    if budget == 4000:
        assert found == gloo(2).run(sampled)  # nobody meets it: as without


def run_refill(*overrides, prompts=40):
    """A step without refills, the same with them, and what was reported; the first that has groups of both kinds."""
    plain, sampler = sampler_of(prompts=prompts), sampler_of(*overrides, prompts=prompts)
    options = StepOptions(shared=torch.ones(1, dtype=torch.bool))
    number, before = 0, None
    while before is None or not {0.0, float(SAMPLES)} <= set(before.by_group("reward").sum(1).tolist()):
        number += 1
        before, _ = plain.sample(number, untimed, lambda step: [])
        assert number < 100
    after, report = sampler.sample(number, untimed, lambda step: silent_groups(step, options, 0.1))
    for one in (plain, sampler):
        one.close()
    return before, after, report


def test_refilling_replaces_groups_that_are_all_right_and_keeps_those_that_are_all_wrong():
    before, after, report = run_refill("rollout.refill_rounds=3")
    old, new = before.by_group("reward").tolist(), after.by_group("reward").tolist()
    was, now = before.by_group("prompt")[:, 0].tolist(), after.by_group("prompt")[:, 0].tolist()
    assert [1.0] * SAMPLES in old and [0.0] * SAMPLES in old, "the case is not tried"
    places = [group for group, said in enumerate(old) if min(said) == 1.0]
    for group in range(12):
        if group not in places:
            assert new[group] == old[group] and now[group] == was[group]
            assert answers(after.pick_groups([group])) == answers(before.pick_groups([group]))
        else:
            assert now[group] not in was
    assert len(set(now)) == len(now)
    refill = report["refill"]
    assert refill["dropped_groups"] >= len(places) and refill["silent_groups"] == sum(min(said) == 1.0 for said in new)
    assert refill["reward_mean_before"] == pytest.approx(sum(map(sum, old)) / 48)
    _, again, _ = run_refill("rollout.refill_rounds=3")
    assert answers(again) == answers(after)


def test_refilling_is_off_by_default_and_ends_where_no_prompt_is_left():
    before, after, report = run_refill()
    assert "refill" not in report and answers(after) == answers(before)
    before, after, report = run_refill("rollout.refill_rounds=9", prompts=12)
    assert answers(after) == answers(before) and report["refill"]["rounds"] == 0


def test_every_token_knows_the_weights_that_sampled_it():
    sampler = sampler_of()
    step, _ = sampler.sample(7, untimed, lambda step: [])
    sampler.close()
    assert step["version"].tolist() == [7] * len(step["engine"])


def judged(*groups, truncated=None):
    count = sum(map(len, groups))
    return Step.of(
        [[1]] * len(groups), [[2]] * count, len(groups[0]), engine=[[0.0]] * count,
        reward=[float(reward) for group in groups for reward in group], truncated=truncated or [False] * count,
    )  # fmt: skip


def options_of(*overrides):
    config = compose(["experiment=miniature", f"rollout.samples_per_prompt={SAMPLES}", *overrides])
    layout = types.SimpleNamespace(data=1, micro_batch_multiple=1)
    contract = types.SimpleNamespace(shared=torch.ones(8, dtype=torch.bool))
    return step_options(config, contract, layout, eos_ids=(), teacher_cost=[1.0], pad_multiple=1)


@pytest.mark.parametrize(
    ("options", "beta", "silent"),
    [
        (["objective=vold"], 0.1, [0]),  # all right
        (["objective=vold_unmasked"], 0.1, []),  # the KL is everywhere
        (["objective=grpo"], 0.0, [0, 1]),  # DAPO: all equal
        (["objective=vold"], 0.0, [0, 1]),  # beta has gone to 0
        (["objective=distillation_only", "objective.kl.mask=reward"], 0.1, [0]),
    ],
)
def test_a_group_is_silent_only_where_neither_term_has_a_gradient(options, beta, silent):
    assert silent_groups(judged([1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]), options_of(*options), beta) == silent


@pytest.mark.parametrize(("overlong", "policy", "kl"), [("keep", 1, 1), ("mask_policy", 0, 1), ("mask_all", 0, 0)])
def test_answers_cut_off_for_length_leave_the_terms_they_are_told_to_and_nothing_else(overlong, policy, kl):
    step = judged([1, 0, 0, 1], truncated=[False, False, True, True])
    select(step, options_of(f"rollout.overlong={overlong}"), 0.1)
    size = 0.5 / (step["reward"].std().item() + 1e-4)  # mean and deviation of all four
    assert step["advantage"].tolist() == pytest.approx([size, -size, -size * policy, size * policy])
    assert step["kl_mask"].tolist() == [0, 1, kl, 0]


def corrections(*overrides):
    from vold_nemo.models.terms import correction_mode

    config = compose(["experiment=miniature", *overrides])
    return correction_mode(config), config.objective.correction.cap


def test_importance_sampling_by_token_cut_at_two_is_on_by_default_with_vllm_alone(gloo):
    [vllm] = gloo(1).run(corrections, "rollout=vllm")
    [transformers] = gloo(1).run(corrections)
    [asked] = gloo(1).run(corrections, "rollout=vllm", "objective.correction.mode=none")
    assert (vllm, transformers, asked[0]) == (("token", 2.0), ("none", 2.0), "none")


def test_validation_asks_images_and_held_out_text_greedily_and_disturbs_no_rollout(world):
    from vold_nemo.config import ConfigError
    from vold_nemo.data.prompts import load_prompts
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import load_tokenizer
    from vold_nemo.models.validation import split_off_validation
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    config = configuration(world, "vold.validation.every=2", "vold.validation.text=null", "vold.validation.hold_out=5")
    config.vold.validation.data.fields.domain = "id"  # a set for each question
    rejected = Rejected(None, 0.0)
    prompts = load_prompts(config.data.prompts, None, rejected)
    kept, held_out = split_off_validation(prompts, config, rejected)
    assert len(held_out["image"]) == 6 and len(held_out["text"]) == 5 and len(kept) == 19
    assert not {p.id for p in held_out["text"]} & {p.id for p in kept}
    assert split_off_validation(prompts, config, rejected)[1]["text"] == held_out["text"]
    layout = types.SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))
    sampler = Sampler(
        TransformersEngine(world / "student"), load_tokenizer(world / "student"), kept, held_out, config, layout
    )
    sampler.engine.version = 2
    plain, _ = sampler.sample(2, untimed, lambda step: [])
    state = torch.get_rng_state()
    found = sampler.validate(2)["validation"]
    assert torch.equal(torch.get_rng_state(), state)
    again, _ = sampler.sample(2, untimed, lambda step: [])
    assert answers(again) == answers(plain) and again["engine"].equal(plain["engine"])
    assert (found["image_questions"], found["text_questions"]) == (6, 5) and len(found["image_by_domain"]) == 6
    assert 0 <= found["image_accuracy"] <= 1 and 0 <= found["text_truncated_rate"] <= 1
    sampler.engine.version = 3
    assert sampler.validate(3) == {}
    sampler.close()
    config.vold.validation.hold_out, config.vold.validation.text = 0, config.data.prompts
    with pytest.raises(ConfigError, match="not among"):
        split_off_validation(prompts, config, rejected)


class Picky(ScriptedEngine):
    """Refuses the prompts whose one id is in ``refused``, as an engine's limits do."""

    def __init__(self, refused):
        super().__init__()
        self.limits = types.SimpleNamespace(refusal=lambda prompt, most: "too long" if set(prompt.ids) & refused else None)


def test_a_prompt_that_the_engine_refuses_is_replaced_named_counted_and_the_others_stay(tmp_path, caplog):
    whole, picky = sampler_of(), sampler_of("data.max_rejected_share=0.5")
    drawn = whole.order.indices(0)
    picky.engine, picky.rejected = Picky({drawn[3]}), Rejected(tmp_path / "rejected.jsonl", 0.5)
    step, report = picky.sample(0, untimed, silent=lambda step: [])
    asked = step["prompt"].tolist()[::SAMPLES]
    assert [a for a, b in zip(drawn, asked, strict=True) if a != b] == [drawn[3]] and len(set(asked)) == len(asked)
    assert report["skipped_prompts"] == 1 and f"prompt p{drawn[3]} is skipped: too long" in caplog.text
    (line,) = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert (line["id"], line["reason"]) == (f"p{drawn[3]}", "skipped: too long")
    without = sampler_of(f"data.without=[p{drawn[3]}]")  # what a resumed run is told draws the same
    assert without.order.indices(0) == asked and without.data_name() == whole.data_name()


def test_above_the_share_of_rejected_rows_skipping_ends_the_run():
    sampler = sampler_of("data.max_rejected_share=0.02")
    sampler.engine = Picky(set(sampler.order.indices(0)[:2]))
    with pytest.raises(ConfigError, match="2 of 40 prompts could not be asked"):
        sampler.sample(0, untimed, silent=lambda step: [])


def test_a_row_whose_verifier_is_gone_is_replaced_and_the_run_s_own_verifier_is_no_row_s_fault():
    sampler = sampler_of("data.max_rejected_share=0.5")
    gone = sampler.order.indices(0)[5]
    sampler.prompts[gone].verifier = "tests.rewards.own_verifiers:always"
    judge = sampler.scorer.score

    def score(items):
        verdicts = judge([(text, truth, None) for text, truth, _ in (item() for item in items)])
        names = [item()[2] for item in items]
        return [
            Verdict(0.0, None, "error: ConfigError: reward.verifier", "error") if name else verdict
            for name, verdict in zip(names, verdicts, strict=True)
        ]

    sampler.scorer.score = score
    step, report = sampler.sample(0, untimed, silent=lambda step: [])
    assert gone not in step["prompt"].tolist() and report["skipped_prompts"] == 1
    assert not any("ConfigError" in reason for reason in step.labels["reason"])
