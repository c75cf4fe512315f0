"""Bad input is an error with a reason, never a zero and never a silent default."""

import pytest
import torch

from tests.objective.cases import loss_of, make_case, ours
from vold_nemo.objective import CorrectionTerm, KLTerm, PolicyTerm, TokenBatch, VocabularyShard

OPTIONS = {"policy": PolicyTerm(), "kl": KLTerm("k2")}


def call(case, **options):
    return ours(case, **(OPTIONS | options))


def test_a_kl_weight_without_a_teacher_is_an_error():
    (hidden, head, _, _), batch, sampleable, shared = make_case()
    with pytest.raises(ValueError, match=r"teacher scored none"):
        loss_of(hidden, head, batch, VocabularyShard.of(0, 1, sampleable, shared), **OPTIONS)


@pytest.mark.parametrize("missing", [0.0, torch.nan, torch.inf])
def test_a_missing_teacher_row_of_an_unmasked_rollout_is_an_error(missing):
    case = make_case()
    at = int((case[1].kl_weight != 0).nonzero()[0])
    case[0][2][at] = missing
    with pytest.raises(ValueError, match=rf"teacher rows of 1 tokens .* are missing \(tokens \[{at}\]"):
        call(case)


def test_a_masked_rollout_needs_no_teacher_row():
    case = make_case()
    case[0][2][case[1].kl_weight == 0] = 0.0
    assert call(case)[0].isfinite()


def test_pure_grpo_needs_no_teacher_at_all():
    (hidden, head, _, _), batch, sampleable, shared = make_case()
    batch.kl_weight.zero_()
    loss, _ = loss_of(hidden, head, batch, VocabularyShard.of(0, 1, sampleable, shared), policy=PolicyTerm())
    assert loss.isfinite()


def test_terms_that_are_off_refuse_their_weights():
    with pytest.raises(ValueError, match=r"KL term is off"):
        call(make_case(), kl=None)
    with pytest.raises(ValueError, match=r"policy term is off"):
        call(make_case(), policy=None)


def test_lengths_and_weights_that_do_not_fit_are_errors():
    for name in ("targets", "sequence", "policy_weight", "kl_weight", "advantages", "old_logprobs", "rollout_logprobs"):
        case = make_case()
        setattr(case[1], name, getattr(case[1], name)[:-1])
        with pytest.raises(ValueError, match=rf"{name} \(22,\) must be \[23\]"):
            call(case)
    case = make_case()
    case[1].policy_weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite"):
        call(case)
    case = make_case()
    case[1].response = torch.zeros(23, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"not part of a response"):
        call(case)


def test_a_correction_without_the_engines_logprobs_is_an_error():
    case = make_case()
    case[1].rollout_logprobs = None
    with pytest.raises(ValueError, match=r"objective.correction.mode"):
        call(case, correction=CorrectionTerm("token"))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: KLTerm("k1"), "estimator"), (lambda: KLTerm(clamp=0.0), "clamp"), (lambda: KLTerm(top_k=0), "top_k"),
        (lambda: KLTerm(jsd_weight=1.0), "jsd_weight"), (lambda: KLTerm(reward_horizon="far"), "reward_horizon"),
        (lambda: KLTerm("k2", one_sided=True), "one_sided"),
        (lambda: PolicyTerm("ppo"), "loss"), (lambda: PolicyTerm(clip_low=1.5), "clip_low"),
        (lambda: PolicyTerm(clip_high=-0.1), "clip_high"), (lambda: PolicyTerm(dual_clip=1.0), "dual_clip"),
        (lambda: CorrectionTerm("tis"), "mode"), (lambda: CorrectionTerm(cap=0.0), "cap"),
    ],
)  # fmt: skip
def test_options_out_of_range_name_their_key_and_what_is_allowed(make, key):
    with pytest.raises(ValueError, match=rf"objective\.\w+\.{key} = .*allowed"):
        make()


def test_whole_responses_count_in_gspo_even_where_a_token_has_no_weight():
    """``response`` makes the sequence ratio run over all its tokens; without it only weighted ones are known."""
    from tests.objective.cases import reference

    (tensors, batch, sampleable, shared) = make_case()
    response = (batch.policy_weight != 0) | (batch.kl_weight != 0)
    batch.policy_weight[::3], batch.kl_weight[::3] = 0.0, 0.0
    whole = TokenBatch(**{**vars(batch), "response": response})
    options = {"policy": PolicyTerm("gspo", 0.05, 0.05), "kl": None}
    batch.kl_weight.zero_()
    got = ours((tensors, whole, sampleable, shared), **options)
    want = reference((tensors, whole, sampleable, shared), **options)
    torch.testing.assert_close(got[2], want[2])
    assert not torch.allclose(got[2], ours((tensors, batch, sampleable, shared), **options)[2])
