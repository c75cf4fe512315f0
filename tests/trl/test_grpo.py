"""GRPO, Dr. GRPO, DAPO and GSPO are TRL's: loss, advantages and the gradient of every parameter, on and off policy."""

import pytest
import torch

from tests.trl import trainer
from vold_nemo.objective import CorrectionTerm, PolicyTerm

# TRL's settings, and ours
METHODS = {
    "grpo": (
        dict(loss_type="grpo", epsilon=0.2, epsilon_high=0.3),
        dict(policy=PolicyTerm("grpo", 0.2, 0.3), average="sequence"),
    ),
    "grpo_dual_clip": (
        dict(loss_type="grpo", epsilon=0.2, epsilon_high=0.3, delta=1.5),
        dict(policy=PolicyTerm("grpo", 0.2, 0.3, dual_clip=1.5), average="sequence"),
    ),
    "dr_grpo": (
        dict(loss_type="dr_grpo", scale_rewards="none", epsilon=0.2),
        dict(policy=PolicyTerm("grpo", 0.2, 0.2), average="constant", advantage="centred"),
    ),
    "dapo": (
        dict(loss_type="dapo", epsilon=0.2, epsilon_high=0.28),
        dict(policy=PolicyTerm("grpo", 0.2, 0.28), average="token"),
    ),
    "gspo": (
        dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=0.05, epsilon_high=0.08),
        dict(policy=PolicyTerm("gspo", 0.05, 0.08), average="sequence"),
    ),
}
CORRECTIONS = {
    "token": (("token_truncate", 1.1), CorrectionTerm("token", 1.1)),
    "sequence": (("sequence_truncate", 1.3), CorrectionTerm("sequence", 1.3)),
    "sequence_mask": (("sequence_mask", 1.3), CorrectionTerm("sequence_mask", 1.3)),
}


def update(model):
    """Somewhere else in weight space, as an optimizer step would leave it: ratios on both sides of every clip."""
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=g, dtype=parameter.dtype))


def compare(tmp_path, method, moved=None, correction=(None, None)):
    settings, options = METHODS[method]
    loss, gradients, advantages = trainer.theirs(
        trainer.tiny_model(), tmp_path, moved=moved, correction=correction[0], **settings
    )
    got, found, own = trainer.ours(trainer.tiny_model(), moved=moved, correction=correction[1], **options)
    torch.testing.assert_close(own.float(), advantages.float())
    torch.testing.assert_close(got, loss.double(), rtol=1e-5, atol=1e-6)  # TRL's advantages and engine log-probs are float32
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert largest > 1e-2 and found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * largest, name
    return found


@pytest.mark.parametrize("moved", [None, update], ids=["on_policy", "second_update"])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_all_gradients_are_trls(tmp_path, method, moved):
    compare(tmp_path, method, moved)


@pytest.mark.parametrize("method", ["grpo", "gspo"])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_importance_corrections_against_the_engine_are_trls(tmp_path, method, correction):
    corrected = compare(tmp_path, method, update, CORRECTIONS[correction])
    plain = compare(tmp_path, method, update)
    assert any(not torch.allclose(corrected[name], plain[name]) for name in plain)
