"""VOLD in a trainer of your own: the step's table and the loss, models of transformers, one process, no Megatron.

python docs/own_trainer.py        (FSDP, TRL or nanochat would keep `step` and `vold_loss` and bring their own model and loop)
"""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from vold_nemo.objective import KLTerm, Objective, TeacherStates, VocabularyShard, vold_loss
from vold_nemo.step import Step, StepOptions, batch_of, make_plan, select, token_batch

IDS, LONGEST, SAMPLES, BETA, END = 32, 8, 4, 0.5, 1
ALL = torch.ones(IDS, dtype=torch.bool)  # ids that can be sampled, and that both models share
SHAPE = dict(vocab_size=IDS, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def hidden_states(model, batch) -> torch.Tensor:
    """[n, H] at the predictions of a micro-batch."""
    states = model.model(input_ids=batch.ids, position_ids=batch.position_ids).last_hidden_state
    return states.transpose(0, 1).flatten(0, 1)[batch.at]


@torch.no_grad()
def sample(student, prompts) -> Step:
    responses, logprobs = [], []
    for prompt in [prompt for prompt in prompts for _ in range(SAMPLES)]:
        ids, said = list(prompt), []
        while len(said) < LONGEST and ids[-1] != END:
            p = student(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(p.exp().multinomial(1)))
            said.append(float(p[ids[-1]]))
        responses.append(ids[len(prompt) :])
        logprobs.append(said)
    rewards = [float(sum(response) % 3 == 0) for response in responses]  # your verifier
    return Step.of(prompts, responses, SAMPLES, engine=logprobs, reward=rewards)


def train(student, teacher, steps: int) -> None:
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    options, shard = StepOptions(shared=ALL, max_tokens=LONGEST, micro_batch_tokens=128), VocabularyShard.of(0, 1, ALL)
    for number in range(steps):
        step = sample(student, [[2 + number, 5], [7, 11, 3]])
        select(step, options, BETA)  # advantages within each group, and the mask 1 - r
        for planned in make_plan(step, options).updates[0][0]:  # of the only update, on the only rank
            batch = batch_of(step, planned)
            states = TeacherStates(hidden_states(teacher, batch), teacher.lm_head.weight) if batch.scored else None
            hidden, head = hidden_states(student, batch), student.lm_head.weight
            objective = Objective(kl=KLTerm("reverse"))
            loss, _ = vold_loss(hidden, head, token_batch(step, batch, BETA), shard, objective, teacher=states)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {number}: reward {step['reward'].mean():.2f}, {int(step['scored'].sum())} rollouts scored by the teacher")


if __name__ == "__main__":
    torch.manual_seed(0)
    models = [Qwen2ForCausalLM(Qwen2Config(hidden_size=hidden, **SHAPE)) for hidden in (32, 48)]
    train(models[0], models[1].requires_grad_(False), steps=3)
