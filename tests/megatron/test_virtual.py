"""Virtual pipeline stages: the same numbers, weights and checkpoints as without them, and as transformers'."""

import pytest
import torch

from tests.megatron import steps, tiny

KINDS = {"qwen2_tied": ("qwen2", True), "qwen3": ("qwen3", False)}
LAYOUTS = [(2, 1, 2, False, 2), (4, 2, 2, True, 2)]  # world, tensor, pipeline, sequence, virtual
WIDE = [pytest.param(*layout, marks=pytest.mark.long if layout[0] > 2 else ()) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: (root / name, tiny.save(kind, root / name, tied=tied)) for name, (kind, tied) in KINDS.items()}


def one_pass(path, tensor, pipeline, sequence, virtual):
    """Loss, gradients and their norm of the first step, under Hugging Face names, and the hidden states of a pass forward."""
    from vold_nemo.megatron import parallel, weights
    from vold_nemo.megatron.heads import meet_head
    from vold_nemo.megatron.training import forward_backward, summed, unwrap

    parts = steps.trainer(path, tensor, pipeline, sequence, virtual=virtual)
    model, arch, layout, optimizer, _ = parts
    try:
        batches = steps.micro_batches(0, layout, 1)  # four lengths

        def keep(stage, batch):
            output = stage(batch.ids, torch.arange(batch.ids.size(1)).expand_as(batch.ids), None)
            return output, lambda hidden: summed(hidden.sum() * 0, meet_head(hidden, layout)[: len(batch.rows[0])].clone())

        seen = forward_backward(model, batches, keep, layout=layout, forward_only=True).statistics
        passed = forward_backward(model, batches, steps.nll_step(arch, layout), layout=layout)
        assert not passed.non_finite
        optimizer.prepare_grads()
        norm = optimizer.get_grad_norm()
        for parameter in model.parameters():
            parameter.data = parameter.main_grad
        return passed.loss, float(norm), dict(weights.stream_hf(unwrap(model), arch, layout)), seen
    finally:
        parallel.destroy()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("world", "tensor", "pipeline", "sequence", "virtual"), WIDE)
def test_hidden_states_and_gradients_are_transformers(
    checkpoints, gloo, name, world, tensor, pipeline, sequence, virtual
):
    path, model = checkpoints[name]
    model.zero_grad()
    rows = steps.sequences(0)
    loss, expected_states = 0.0, []
    for row in rows:
        said = model(input_ids=row[None], output_hidden_states=True)
        expected_states.append(said.hidden_states[-1][0].detach())
        loss = loss + torch.nn.functional.cross_entropy(said.logits[0, :-1], row[1:], reduction="sum") * steps.token_weight()
    loss.backward()
    expected = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    found = gloo(world).run(one_pass, path, tensor, pipeline, sequence, virtual)
    for found_loss, found_norm, gradients, _ in found:
        assert found_loss == pytest.approx(loss.item(), rel=1e-5) and found_norm == pytest.approx(norm.item(), rel=1e-5)
        assert gradients.keys() == expected.keys()
        for key, gradient in expected.items():
            assert (gradients[key] - gradient).norm() < 1e-5 * norm, key
    stages = [states for *_, states in found if states]
    assert len(stages) == tensor
    for states in stages:
        for mine, theirs in zip(states, expected_states, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
