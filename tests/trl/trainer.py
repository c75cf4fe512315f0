"""A real `trl.GRPOTrainer` on a tiny Qwen2 in float64, fed with fixed completions, and our objective on the same model.

TRL's own code does everything on its side: rewards to advantages, old log-probs, importance ratios against the engine's
log-probs, the loss and its normalisation.  Completions and the engine's log-probs come in through its public ``rollout_func``.
Ours reads the same model's hidden states and LM head (tied to the embedding), so every parameter's gradient can be compared.
"""

from functools import cache

import torch

from vold_nemo.objective import (
    CorrectionTerm,
    Objective,
    TokenBatch,
    VocabularyShard,
    group_advantages,
    sequence_weights,
    token_logprobs,
    vold_loss,
)

VOCABULARY, PROMPTS, SAMPLES, PROMPT_LENGTH, LONGEST = 61, 3, 4, 5, 9
TEMPERATURE = 0.7
END = 1


@cache
def rollouts():
    """Ids of prompts and completions (ragged, the last token the end of sequence), engine log-probs, rewards.

    The engine's log-probs are the model's own, a little off, so that importance ratios fall on both sides of every cap.
    """
    g = torch.Generator().manual_seed(3)
    draw = lambda low, high, size: torch.randint(low, high, (size,), generator=g).tolist()  # noqa: E731
    prompts = [draw(2, VOCABULARY, PROMPT_LENGTH) for _ in range(PROMPTS)]
    prompts = [prompt for prompt in prompts for _ in range(SAMPLES)]
    lengths = draw(1, LONGEST, len(prompts))
    completions = [[*draw(2, VOCABULARY, length), END] for length in lengths]
    model, engine = tiny_model(), []
    for prompt, ids in zip(prompts, completions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        own = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        engine.append((own + 0.15 * torch.randn(len(ids), generator=g)).tolist())
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.25, 1.0]  # the second group has no advantage
    return prompts, completions, engine, rewards


def tiny_model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.6, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double()


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": END} | {f"w{i}": i for i in range(2, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), eos_token="<end>", pad_token="<pad>"
    )


def theirs(model, folder, *, moved=None, correction=None, **settings):
    """TRL's loss and the gradients of all parameters.

    Args:
        moved: called on the model between the rollouts and the loss: an update that makes them off-policy.
        correction: (mode, cap) of TRL's importance sampling against the engine's log-probs.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    prompts, completions, engine, rewards = rollouts()
    taken = iter(range(10**6))

    def replay(_prompts, _trainer):
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": engine}

    def reward(completions, **_):
        return [rewards[next(taken)] for _ in completions]

    arguments = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], beta=0.0, temperature=TEMPERATURE,
        per_device_train_batch_size=len(prompts), gradient_accumulation_steps=1, num_generations=SAMPLES,
        max_completion_length=LONGEST, num_iterations=2 if moved else 1, gradient_checkpointing=False, **settings,
    )  # fmt: skip
    rows = [{"prompt": f"w{i + 2}"} for i in range(PROMPTS)]
    trainer = GRPOTrainer(
        model, reward, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(), rollout_func=replay
    )
    trainer.current_gradient_accumulation_steps = 1  # Trainer.train sets it
    if correction:  # TRL ties it to vLLM; its arithmetic needs the log-probs only
        trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
        trainer.vllm_importance_sampling_correction = True
        trainer.vllm_importance_sampling_mode, trainer.vllm_importance_sampling_clip_max = correction
        trainer.vllm_importance_sampling_clip_min = None
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([row for row in rows for _ in range(SAMPLES)])
    if moved:
        moved(trainer.model)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, inputs["advantages"]


def hidden_states(model):
    """[n, H] at the positions that predict a completion token, with targets [n] and sequence indices [n]."""
    prompts, completions, *_ = rollouts()
    hidden = [
        model.model(torch.tensor([prompt + answer])).last_hidden_state[0, len(prompt) - 1 : -1]
        for prompt, answer in zip(prompts, completions, strict=True)
    ]
    sequence = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(answer) for answer in completions]))
    return torch.cat(hidden), torch.tensor([i for answer in completions for i in answer]), sequence


def ours(model, policy, *, average, advantage="standardised", moved=None, correction=None):
    """Our loss, gradients and advantages."""
    _, completions, engine, rewards = rollouts()
    shard = VocabularyShard.of(0, 1, torch.ones(VOCABULARY, dtype=torch.bool))
    old = None
    if moved:
        hidden, targets, _ = hidden_states(model)
        old, _ = token_logprobs(hidden, model.lm_head.weight, targets, shard, temperature=TEMPERATURE, chunk_tokens=7)
        moved(model)
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64).view(PROMPTS, SAMPLES), advantage).flatten()
    weights = sequence_weights([len(answer) for answer in completions], average, LONGEST)
    hidden, targets, sequence = hidden_states(model)
    batch = TokenBatch(
        targets, sequence, torch.tensor(weights, dtype=torch.float64)[sequence], torch.zeros(len(targets)),
        advantages[sequence], old, torch.tensor([p for answer in engine for p in answer], dtype=torch.float64),
    )  # fmt: skip
    model.zero_grad()
    loss, _ = vold_loss(
        hidden, model.lm_head.weight, batch, shard,
        Objective(policy, correction=correction or CorrectionTerm(), temperature=TEMPERATURE, chunk_tokens=7),
    )  # fmt: skip
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, advantages
