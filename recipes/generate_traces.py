"""The teacher answers text prompts: the data of stage 1.

    python recipes/generate_traces.py experiment=miniature
    python recipes/generate_traces.py experiment=paper_3b traces.shard=0 traces.shards=8      one job of eight
    srun --ntasks=8 python recipes/generate_traces.py experiment=paper_3b                     a shard a task

As in the paper, a trace that reaches ``traces.max_tokens`` is dropped and none is verified.  Traces are appended to
``traces.path`` batch by batch and flushed to the disk; a job that is started again goes on behind the last batch, with the
traces that an uninterrupted run would have made (same settings and batch size, same hardware).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config
from vold_nemo.planning.example import print_example


@recipe(plan=print_example("generate_traces"))
def main(config: Config) -> None:
    from tqdm import tqdm

    from vold_nemo.data.prompts import load_prompts
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import load_tokenizer
    from vold_nemo.data.traces import TraceWriter, shard_path
    from vold_nemo.megatron.parallel import launch

    started, here = time.monotonic(), launch()
    # Every task of a job step takes a shard of its own: no process group, no rank that waits for another.
    shard = config.traces.shard * here.world + here.rank
    shards = config.traces.shards * here.world
    path = shard_path(config.traces.path, shard, shards)
    rejected = Rejected(shard_path(path.parent / "rejected.jsonl", shard, shards), config.data.max_rejected_share)
    dataset = config.data.trace_prompts if config.data.trace_prompts is not None else config.data.prompts
    prompts = load_prompts(dataset, config.data.system_prompt, rejected, answers=False)[shard::shards]
    tokenizer = load_tokenizer(config.teacher.path, config.teacher.revision)
    samples = config.traces.samples_per_prompt

    with TraceWriter(path, settings(config, tokenizer)) as writer:
        found, tokens = len(writer.done), 0
        # Batches are cut from all prompts and never from what is left, so that a resumed batch is the one that was lost.
        batches = [prompts[start : start + config.traces.batch] for start in range(0, len(prompts), config.traces.batch)]
        open_batches = [b for b in batches if any((p.id, k) not in writer.done for p in b for k in range(samples))]
        engine = build_engine(config, here.local_rank) if open_batches else None
        loaded = time.monotonic()
        with tqdm(total=len(prompts) * samples, initial=found, unit="trace", desc=f"traces {shard + 1}/{shards}") as bar:
            for batch in open_batches:
                rows = list(answer(engine, tokenizer, batch, config))
                tokens += sum(row["response_tokens"] for row in rows)
                new = [row for row in rows if (row["id"], row["sample"]) not in writer.done]
                writer.write(new)
                bar.update(len(new))
                bar.set_postfix_str(f"{tokens / (time.monotonic() - loaded):.0f} tokens/s, {writer.dropped} dropped")
        done, dropped = len(writer.done), writer.dropped
    if rejected.count():
        print(f"rejected {rejected.count()} rows ({rejected.summary()}): {rejected.path}")
    print(
        f"{path}: {done - dropped} traces of {len(prompts)} prompts, {dropped} dropped at {config.traces.max_tokens} tokens; "
        f"{found} were there before; {tokens} tokens in {time.monotonic() - started:.0f} s"
    )


def settings(config: Config, tokenizer) -> dict:
    """What every trace carries and what a resumed run must agree on."""
    from vold_nemo.data.lineage import weights_digest

    return {
        "teacher": config.teacher.path,
        "teacher_weights": weights_digest(config.teacher.path),
        "thinking": config.teacher.thinking,
        "template": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()[:16],
        "sampling": {"temperature": config.traces.temperature, "max_tokens": config.traces.max_tokens},
        "seed": config.seed,
    }


def build_engine(config: Config, local_rank: int):
    """The rollout engine with the teacher in it."""
    import torch

    from vold_nemo.data.templates import eos_ids, load_tokenizer
    from vold_nemo.megatron.parallel import pick_device
    from vold_nemo.planning.memory import scribe_precision
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(
        Path(config.teacher.path),
        device=pick_device(config.device, local_rank),
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[scribe_precision(config)],
        batch=config.traces.batch,
        stop_ids=eos_ids(config.teacher.path, load_tokenizer(config.teacher.path, config.teacher.revision)),
    )


def answer(engine, tokenizer, prompts: list, config: Config) -> Iterator[dict]:
    """One trace row for each (prompt, sample); ``response`` and its ids are null where the limit was reached."""
    from vold_nemo.data.templates import render_prompt
    from vold_nemo.rollout.engine import EnginePrompt, Sampling

    asked = [
        # The key ties a prompt's random numbers to its id: they do not depend on its place, its batch or its shard.
        EnginePrompt(
            render_prompt(tokenizer, prompt, thinking=config.teacher.thinking),
            prompt.images,
            key=int.from_bytes(hashlib.sha256(prompt.id.encode("utf-8", "replace")).digest()[:8], "little"),
        )
        for prompt in prompts
    ]
    sampling = Sampling(
        samples=config.traces.samples_per_prompt,
        temperature=config.traces.temperature,
        max_tokens=config.traces.max_tokens,
        seed=config.seed,
    )
    for completion in engine.generate(asked, sampling):
        prompt, kept = prompts[completion.prompt_index], completion.finish_reason == "stop"
        yield {
            "id": prompt.id,
            "sample": completion.sample,
            "messages": prompt.messages,
            "response": tokenizer.decode(completion.ids, skip_special_tokens=True) if kept else None,
            "response_ids": completion.ids if kept else None,
            "response_tokens": len(completion.ids),
            "finish": completion.finish_reason,
        }


if __name__ == "__main__":
    main()
