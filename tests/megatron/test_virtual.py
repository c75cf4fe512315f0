"""Virtual pipeline stages: the same numbers, weights and checkpoints as without them, and as transformers'."""

from types import SimpleNamespace

import pytest
import torch

from tests.megatron import steps, tiny
from tests.megatron.test_training import trajectory
from tests.megatron.test_weights import backbone
from vold_nemo.megatron import architecture
from vold_nemo.megatron.architecture import published
from vold_nemo.megatron.names import hf_names

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


def streamed(path, tensor, pipeline, virtual):
    """What the stream has of a model that was loaded, and that is exported at its end."""
    from vold_nemo.megatron import parallel, weights

    model, arch, layout = tiny.built(path, tensor, pipeline, virtual=virtual)
    try:
        return dict(weights.stream_hf(model, arch, layout))
    finally:
        parallel.destroy()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layout", [(1, 2, 2), pytest.param((2, 2, 2), marks=pytest.mark.long)])
def test_streamed_weights_are_the_bytes_and_names_on_disk(checkpoints, gloo, name, layout):
    path, _ = checkpoints[name]
    expected = backbone(path)
    for found in gloo(layout[0] * layout[1]).run(streamed, path, *layout):
        assert list(found) == hf_names(architecture.read(path)) and found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


def test_chunks_hold_the_layers_that_megatron_core_gives_them(gloo):
    compared, uneven, different = gloo(1).run(by_megatron_core)[0]
    assert compared > 50 and uneven  # some layers that the stages do not share evenly
    assert not different


def by_megatron_core():
    """(layouts compared, those of stages that differ in size, chunks whose layers are others there)"""
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    compared, uneven, different = 0, 0, []
    for name, arch in published().items():
        for pipeline in range(2, 13):
            stages = arch.stages(pipeline)
            for virtual in (n for n in (2, 3, 4) if stages and arch.virtual(pipeline, n) == n):
                equal = len(set(stages)) == 1
                compared, uneven = compared + 1, uneven + (not equal)
                config = SimpleNamespace(
                    num_layers=arch.layers, pipeline_model_parallel_size=pipeline, pipeline_model_parallel_layout=None,
                    virtual_pipeline_model_parallel_size=virtual, account_for_embedding_in_pipeline_split=False,
                    account_for_loss_in_pipeline_split=False,
                    num_layers_in_first_pipeline_stage=None if equal else stages[0],
                    num_layers_in_last_pipeline_stage=None if equal else stages[-1],
                )  # fmt: skip
                for index, layers in enumerate(arch.chunks(pipeline, virtual)):
                    at = dict(vp_stage=index // pipeline, pp_rank=index % pipeline)
                    first, count = get_transformer_layer_offset(config, **at), get_num_layers_to_build(config, **at)
                    if layers != range(first, first + count):
                        different.append((name, pipeline, virtual, index, layers, first, count))
    return compared, uneven, different


def test_a_number_of_micro_batches_that_has_no_schedule_is_refused(checkpoints, gloo):
    for said in gloo(2).run(refused, checkpoints["qwen2_tied"][0]):
        assert "3 micro-batches" in said and "multiple of 2" in said


def refused(path):
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.training import forward_backward

    model, arch, layout, *_ = steps.trainer(path, 1, 2, virtual=2)
    try:
        forward_backward(model, steps.micro_batches(0, layout, 1)[:3], steps.nll_step(arch, layout), layout=layout)
    except ValueError as error:
        return str(error)
    finally:
        parallel.destroy()


@pytest.mark.long
@pytest.mark.parametrize("options", [{"virtual": 2}, {"virtual": 2, "distributed": True}])
@pytest.mark.parametrize("size", [1, 2])
def test_trajectory_equals_the_dense_model_in_float64(tmp_path, gloo, options, size):
    """``size`` 2: as many micro-batches as stages, all of them in the warm-up."""
    path, expected = trajectory("qwen2_tied", tmp_path)
    for found in gloo(2).run(steps.trajectory, path, 1, 2, False, size, steps.STEPS, options):
        for one, dense in zip(found, expected, strict=True):
            assert one == pytest.approx(dense, rel=1e-5)
