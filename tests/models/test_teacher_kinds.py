"""Teachers of every kind beside a dense student: experts spread over ranks, layers that the pipeline does not divide."""

import shutil

import numpy as np
import pytest

from tests.megatron import tiny
from tests.models.stages import REWARDS, make_world, vold_steps
from vold_nemo.megatron import architecture
from vold_nemo.planning.allocation import Placement, frozen

LAYOUTS = {  # world, tensor, pipeline, sequence, expert
    "alone": (1, 1, 1, False, 1), "tp2_sp_ep2": (2, 2, 1, True, 2), "pp2": (2, 1, 2, False, 1), "ep2": (2, 1, 1, False, 2),
    "tp2pp2_sp_ep2": (4, 2, 2, True, 2),
}  # fmt: skip


def save_mixture(path, tokenizer_of) -> None:
    """A random mixture of experts that reads the miniature's ids, with five layers."""
    tiny.save("qwen3_moe", path, tied=False, vocab_size=64, num_hidden_layers=5)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (tokenizer_of / name).is_file():
            shutil.copyfile(tokenizer_of / name, path / name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    save_mixture(folder / "mixture", folder / "teacher")
    tiny.save("qwen3", folder / "odd", vocab_size=64, num_hidden_layers=5)
    return folder


def final_states(path, tensor, pipeline, sequence, expert, virtual=1):
    """The teacher's hidden states of one micro-batch [B, S, H] on the last stage, else None; and its bytes."""
    import torch

    from vold_nemo.config import TeacherConfig
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.heads import meet_head
    from vold_nemo.models.teacher import Teacher
    from vold_nemo.step import collate

    layout = parallel.initialize(
        tensor, pipeline, virtual=virtual, expert=expert, sequence=sequence, seed=1, device="cpu"
    )  # fmt: skip
    teacher = Teacher(TeacherConfig(path=str(path)), layout, padded_vocabulary=64, student_precision="fp32")
    ids = tiny.tokens().tolist()
    unscored = collate([(ids[0], 3)], rows=(0,), length=12)
    batch = collate([(row, 3) for row in ids], rows=(0, 1), length=12, scored=True)
    nothing, hidden, *_ = teacher.hidden_states([unscored, *[batch] * layout.micro_batch_multiple])
    bytes_of, on_device = teacher.memory_bytes(), hidden is None or hidden.device == layout.device
    if hidden is not None:
        with torch.no_grad():
            hidden = meet_head(hidden, layout).view(12, 2, -1).transpose(0, 1).clone()
    parallel.destroy()
    return nothing, hidden, bytes_of, on_device, layout.pipeline_rank


@pytest.mark.long
@pytest.mark.parametrize("kind, layers", [("odd", 5), ("even", 4), ("mixture", 5)])
def test_virtual_stages_of_the_student_leave_hidden_states_as_they_were(gloo, world, kind, layers):
    """Five layers are not for two stages of two: this teacher then does without."""
    if kind == "even":
        tiny.save("qwen3", world / "even", vocab_size=64, num_hidden_layers=layers)
    alone = gloo(1).run(final_states, world / kind, 1, 1, False, 1)[0][1]
    for *_, stage in (found := gloo(4).run(final_states, world / kind, 2, 2, True, 1, 2)):
        assert stage in (0, 1)
    states = [hidden for _, hidden, *_ in found if hidden is not None]
    assert len(states) == 2 and all(np.allclose(mine, alone, atol=1e-4) for mine in states)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["mixture", "odd"])
def test_hidden_states_are_transformers_in_every_layout(gloo, world, kind, name):
    import torch
    from transformers import AutoModelForCausalLM

    ranks, *layout = LAYOUTS[name]
    if kind == "odd" and layout[-1] > 1:
        layout[-1] = 1  # no experts to spread
    reference = AutoModelForCausalLM.from_pretrained(world / kind, dtype=torch.float32)
    with torch.no_grad():
        expected = reference.model(input_ids=tiny.tokens()).last_hidden_state
    found = gloo(ranks).run(final_states, world / kind, *layout)
    assert all(nothing is None and here for nothing, _, _, here, _ in found)
    tensor, pipeline, _, expert = layout
    for *_, bytes_of, _, stage in found:  # as the planner reckons, to the byte
        at = Placement(tensor, pipeline, ranks // (tensor * pipeline), stage, expert=expert)
        planned = frozen(architecture.read(world / kind), at, 64, "fp32")
        assert bytes_of == {"weights": planned.parameters, "gradients": 0} and planned.optimizer == 0
    # Only the last stage, where the loss is, keeps any.
    kept = [hidden for _, hidden, *_ in found if hidden is not None]
    assert len(kept) == ranks // layout[1]
    for hidden in kept:
        assert (hidden - expected).abs().max() < 1e-4 * expected.abs().max()


STEPS = {
    "ep2": (2, ["parallel.expert=2"]),
    "tp2_sp_ep2": (2, ["parallel=tp2_sp", "parallel.expert=2"]),
    "pp2": (2, ["parallel=pp2"]),
    "tp2pp2_sp_ep2": (4, ["parallel=tp2pp2", "parallel.sequence=true", "parallel.expert=2"]),
}


@pytest.fixture(scope="module")
def alone(gloo, world):
    return gloo(1).run(vold_steps, world, REWARDS, *options(world))[0]


def options(world):
    return "objective=vold_reverse", f"teacher.path={world}/mixture", "vold.micro_batch_tokens=64"


@pytest.mark.parametrize("name", ["ep2", *(pytest.param(name, marks=pytest.mark.long) for name in STEPS if name != "ep2")])
def test_a_step_with_a_mixture_of_experts_beside_a_dense_student_is_the_same_in_every_layout(gloo, world, alone, name):
    ranks, overrides = STEPS[name]
    for said in gloo(ranks).run(vold_steps, world, REWARDS, *options(world), *overrides):
        for metrics, expected in zip(said["metrics"], alone["metrics"], strict=True):
            for key in ("loss", "loss_kl", "kl_mean", "grad_norm", "teacher_tokens"):
                assert metrics[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), key
        for tensor, value in alone["weights"].items():
            np.testing.assert_allclose(said["weights"][tensor], value, atol=1e-6)
        assert said["memory"]["gradients"] == 0
