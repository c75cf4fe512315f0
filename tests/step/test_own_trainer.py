"""The table and the loss without the rest: the example of docs/own_trainer.py, beside the textbook's loss by autograd."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "docs" / "own_trainer.py"


def test_the_example_is_short_and_knows_only_the_table_and_the_objective():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 60
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); print(sorted(m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(EXAMPLE)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "step 2: reward" in done.stdout
    loaded = eval(done.stdout.splitlines()[-1])
    ours = {name.split(".")[1] for name in loaded if name.startswith("vold_nemo.")}
    assert ours == {"step", "objective"}
    assert not {"megatron", "nemo", "hydra", "omegaconf", "lightning"} & {name.split(".")[0] for name in loaded}


def test_its_step_is_grpo_and_masked_kl_by_autograd():
    """Eq. 6 over all sampled rollouts, written out with full logits in float64, has the same gradient."""
    spec = importlib.util.spec_from_file_location("own_trainer", EXAMPLE)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    torch.manual_seed(3)
    models = [own.Qwen2ForCausalLM(own.Qwen2Config(hidden_size=hidden, **own.SHAPE)).double() for hidden in (32, 48)]
    student, teacher = models
    taken = []

    class Kept(torch.optim.SGD):
        def step(self):
            taken.append({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})

    plain, steps = torch.optim.AdamW, []
    sample = own.sample
    try:
        torch.optim.AdamW = lambda parameters, lr: Kept(parameters, lr=lr)
        own.sample = lambda *args: steps.append(sample(*args)) or steps[-1]
        own.train(student, teacher.requires_grad_(False), steps=1)
    finally:
        torch.optim.AdamW, own.sample = plain, sample
    (step,) = steps
    rewards = step.by_group("reward")
    assert 0 < rewards.sum() < rewards.numel()
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    loss = 0.0
    for row in range(len(step)):
        ids, prompt = step.sequence(row).long(), len(step.prompts[row // step.samples])
        p = student(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1)
        q = teacher(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1)
        logprob = p.gather(1, ids[prompt:, None]).squeeze(1)
        ratio = (logprob - logprob.detach()).exp()
        kl = (p.exp() * (p - q)).sum(-1)
        loss = loss + (-(ratio * advantages[row]).mean() + own.BETA * (1 - step["reward"][row]) * kl.mean()) / len(step)
    student.zero_grad()
    loss.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(taken[0][name], parameter.grad, rtol=1e-5, atol=1e-9, msg=name)
    assert max(gradient.abs().max() for gradient in taken[0].values()) > 1e-3


@pytest.mark.parametrize("what", ["step", "objective"])
def test_the_room_needs_torch_alone(what):
    code = f"import sys, vold_nemo.{what}; print(sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not {"megatron", "nemo", "hydra", "omegaconf", "transformers", "datasets"} & set(eval(done.stdout))
