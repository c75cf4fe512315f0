"""Where the log-prob gap of engine and trainer comes from in bf16, and how far a bf16 teacher is from an fp32 one.

A student in bf16 answers prompts; several programs then score the same tokens with the same weights.  ``exact`` is transformers
in float64 on the bf16 weights: what is apart from it is the rounding inside a forward pass, and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

SAMPLES, MAX_TOKENS = 5, 40


def measure(outputs: str, students: dict[str, Path], count: int) -> dict:
    """{arm: gaps}, and the teacher's distance, on ``SAMPLES`` answers to ``count`` prompts each."""
    from vold_nemo.command.quiet import quiet, quiet_nemo

    quiet()
    quiet_nemo()
    from vold_nemo.megatron import parallel

    world = Path(outputs) / "miniature_world"
    asked = [json.loads(line) for line in (world / "data/rl_prompts.jsonl").read_text().splitlines()[:count]]
    parallel.initialize(1, 1, sequence=False, seed=0, device="cpu")
    found = {arm: student_gaps(path, world / "teacher", [row["prompt"] for row in asked]) for arm, path in students.items()}
    parallel.destroy()
    return found


def student_gaps(path: Path, teacher: Path, questions: list[str]) -> dict:
    import torch

    from vold_nemo.data.templates import load_tokenizer, render_prompt
    from vold_nemo.rollout.engine import EnginePrompt, Sampling
    from vold_nemo.rollout.transformers_engine import TransformersEngine
    from vold_nemo.step.metrics import mismatch

    tokenizer = load_tokenizer(path)
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    engine = TransformersEngine(path, dtype=torch.bfloat16, batch=SAMPLES * len(prompts))
    done = engine.generate([EnginePrompt(ids) for ids in prompts], Sampling(SAMPLES, 1.0, MAX_TOKENS, seed=0))
    texts = [(prompts[answer.prompt_index], answer.ids) for answer in done]

    def taken(logprobs):  # of the sampled tokens
        pairs = zip(logprobs, texts, strict=True)
        return torch.cat([row.gather(-1, torch.tensor(ids)[:, None])[:, 0] for row, (_, ids) in pairs])

    exact = taken(scored(path, texts, "transformers", torch.float64))
    programs = {
        "engine": torch.cat([torch.tensor(answer.logprobs, dtype=torch.float64) for answer in done]),
        "transformers, no cache": taken(scored(path, texts, "transformers", torch.bfloat16)),
        "transformers, logits in fp32": taken(scored(path, texts, "transformers", torch.bfloat16, exact_head=True)),
        "trainer": taken(scored(path, texts, "megatron", torch.bfloat16)),
        "trainer in fp32": taken(scored(path, texts, "megatron", torch.float32)),
    }
    teachers = {
        "weights in bf16": scored(teacher, texts, "transformers", torch.float64),
        "bf16": scored(teacher, texts, "megatron", torch.bfloat16),
    }
    whole = torch.cat(scored(teacher, texts, "transformers", torch.float64, rounded=False))
    return {
        "tokens": len(exact), "entropy": -float(exact.mean()),
        "from_exact": {name: mismatch(logprobs - exact) for name, logprobs in programs.items()},
        "from_trainer": {
            name: mismatch(programs["trainer"] - programs[name])
            for name in ("engine", "transformers, no cache", "transformers, logits in fp32")
        },
        "teacher": {name: divergence(whole, torch.cat(rows)) for name, rows in teachers.items()},
    }  # fmt: skip


def divergence(whole, other) -> dict[str, float]:
    """KL(whole || other) of each token over the vocabulary, in nats, and how often both rank the same id first."""
    kl = (whole.exp() * (whole - other)).sum(-1)
    same = (whole.argmax(-1) == other.argmax(-1)).double().mean()
    return {"mean": float(kl.mean()), "max": float(kl.max()), "same_first": float(same)}


def scored(path: Path, texts: list, program: str, dtype, *, exact_head: bool = False, rounded: bool = True) -> list:
    """Log-probs [tokens of the answer, V], float64, for each of ``texts`` (prompt ids, answer ids).

    The weights are rounded to bf16 first, whatever ``dtype`` is, unless ``rounded`` is false.  ``exact_head``: logits from
    the same hidden states in fp32.  Megatron's logits are, as in the objective.
    """
    import torch

    model = (megatron if program == "megatron" else transformers)(path, dtype, rounded, exact_head)
    found = []
    with torch.no_grad():
        for prompt, answer in texts:
            logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
            found.append(logits.double().log_softmax(-1))
    return found


def transformers(path: Path, dtype, rounded: bool, exact_head: bool):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    vision, half = hasattr(AutoConfig.from_pretrained(path), "vision_config"), dtype is torch.bfloat16
    auto = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model = auto.from_pretrained(path, dtype=dtype if half else torch.float32).eval()
    for parameter in model.parameters() if rounded and not half else ():  # and no buffer: rotary frequencies stay exact
        parameter.data = parameter.data.bfloat16().float()
    model = model.to(dtype)

    def logits(ids):
        hidden, head = model.model(input_ids=ids).last_hidden_state, model.lm_head.weight
        return hidden.float() @ head.float().t() if exact_head else hidden @ head.t()

    return logits


def megatron(path: Path, dtype, rounded: bool, exact_head: bool):
    import torch

    from vold_nemo.megatron import architecture, build, parallel, weights

    arch, layout = architecture.read(path), parallel.current()
    padded = architecture.padded_vocabulary([arch.vocabulary], 1)
    model = build.build_model(arch, layout, padded_vocabulary=padded, dtype=dtype, trainable=False)
    weights.load_hf(model, arch, layout, weights.Files(path))
    for parameter in model.parameters() if rounded else ():
        parameter.data = parameter.data.bfloat16().to(dtype)

    def logits(ids):
        hidden = model(ids, torch.arange(ids.shape[1])[None], None).transpose(0, 1)
        return (hidden.float() @ build.lm_head_weight(model).float().t())[..., : arch.vocabulary]

    return logits


def rows(found: dict) -> list[str]:
    """As markdown."""
    lines = []
    for arm, said in found.items():
        lines += [
            f"Log-probs of {said['tokens']} tokens that the bf16 student `{arm}` sampled (mean -log p {said['entropy']:.3f}), "
            "the same bf16 weights in every program: mean |d|, largest |d|, k3.", "",
            "| program | from float64 | from the bf16 trainer |", "|---|---|---|",
        ]  # fmt: skip
        for name, gap in said["from_exact"].items():
            cells = [gap, said["from_trainer"].get(name)]
            lines.append(f"| {name} | {' | '.join('' if c is None else spoken(c) for c in cells)} |")
        lines += ["", "| teacher on these tokens, from fp32 weights in float64 | mean KL, nats | largest | same first choice |",
                  "|---|---|---|---|"]  # fmt: skip
        for name, kl in said["teacher"].items():
            lines.append(f"| {name} | {kl['mean']:.2g} | {kl['max']:.2g} | {100 * kl['same_first']:.2f} % |")
        lines.append("")
    return lines


def spoken(gap: dict[str, float]) -> str:
    return f"{gap['mean']:.2e}, {gap['max']:.2e}, {gap['k3']:.2e}"
