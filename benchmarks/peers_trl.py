"""An arm of `benchmarks/peers.py`: a trainer of TRL's for a few steps, in TRL's environment.  Settings: one JSON argument."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.process import Record


def boxed(text: str) -> str | None:
    """What the last box holds."""
    found, _, rest = text.rpartition("\\boxed{")
    return rest.partition("}")[0] if found else None


def main(s: dict) -> None:
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

    torch.set_num_threads(s["threads"])
    record = Record()
    folder, distils = Path(s["folder"]), s["arm"] == "trl_distillation"
    rows = [json.loads(line) for line in (Path(s["world"]) / "data/rl_prompts.jsonl").read_text().splitlines()]
    data = Dataset.from_list([
        {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in rows[: 40 * s["prompts"]]
    ])
    # AutoTokenizer would take Qwen2's class for a model of type qwen2, whose splitting knows none of the miniature's words
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "student", padding_side="left")
    batch = s["trl_batch"] or s["prompts"] * s["samples"]
    batches, left = divmod(s["prompts"] * s["samples"], batch)
    if left:
        raise SystemExit(f"trl_batch={batch}: the step's {s['prompts'] * s['samples']} rollouts must be a multiple of it")
    shared = dict(
        output_dir=str(folder / f"{s['arm']}_{s['seed']}"), max_steps=s["steps"], per_device_train_batch_size=batch,
        gradient_accumulation_steps=batches, max_completion_length=s["max_tokens"], temperature=1.0, learning_rate=1e-4,
        lr_scheduler_type="constant", use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, save_strategy="no",
        report_to="none", logging_strategy="no", disable_tqdm=True, seed=s["seed"], dataloader_pin_memory=False,
        adam_beta2=0.95, max_grad_norm=1.0, optim="adamw_torch", model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    said: dict[str, float | None] = {"reward": None}  # a distillation asks for none

    def reward(completions, answer, completion_ids, **_):
        rewards = [float(boxed(done[0]["content"]) == truth) for done, truth in zip(completions, answer, strict=True)]
        said["reward"] = sum(rewards) / len(rewards)
        return rewards

    if distils:
        config = DistillationConfig(**shared, beta=1.0, teacher_model_init_kwargs={"dtype": "float32"})
        trainer = DistillationTrainer(
            str(folder / "student"), teacher_model=str(folder / "teacher"), args=config, train_dataset=data,
            processing_class=tokenizer,
        )  # fmt: skip
    else:
        config = GRPOConfig(**shared, num_generations=s["samples"], steps_per_generation=batches, beta=0.0)
        trainer = GRPOTrainer(str(folder / "student"), reward, args=config, train_dataset=data, processing_class=tokenizer)

    inner, lengths = trainer._generate_and_score_completions, []

    def generate(inputs):
        out = inner(inputs)
        lengths.extend(out["completion_mask"].sum(dim=1).tolist())
        return out

    trainer._generate_and_score_completions = generate
    record.watch(trainer, "_generate_and_score_completions", "generate")
    record.watch(trainer, "training_step", "loss and backward")

    class Steps(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            record.step(tokens=sum(lengths) / len(lengths), reward=said["reward"])
            lengths.clear()

    trainer.add_callback(Steps())
    trainer.train()
    record.write(s["out"], f"TRL {trl.__version__}: torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
