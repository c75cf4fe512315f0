"""The teacher answers text prompts: the data of stage 1.

    python recipes/generate_traces.py experiment=miniature
    python recipes/generate_traces.py experiment=paper_3b traces.shard=0 traces.shards=8      one job of eight
    srun --ntasks=8 python recipes/generate_traces.py experiment=paper_3b traces.engine=vllm  a shard a task
    python recipes/generate_traces.py experiment=paper_3b data=original_traces                the set's own, no teacher
    python recipes/generate_traces.py experiment=paper_3b data.trace_prompts=null traces.verify=true reward.verifier=math \\
        traces.path=outputs/teacher_errors/traces.jsonl                                       its error rate on stage 2

As in the paper, a trace that reaches ``traces.max_tokens`` is dropped and none is verified; ``traces.verify`` judges them all
the same, drops none, and prints the teacher's error rate.  Traces are appended to ``traces.path`` block by block and flushed
to the disk.  What is answered is kept under another number of shards, too.  A job that is started again goes on behind what is
there: with transformers it makes the traces that an uninterrupted run would have made (same settings and batch size, same
hardware), with vLLM it answers what has no answer yet.
"""

from __future__ import annotations

import time

from vold_nemo.command import recipe
from vold_nemo.config import Config
from vold_nemo.planning.example import print_example


@recipe(
    reads=("traces", "teacher", "data", "reward", "seed", "device", "precision"),
    plan=print_example("generate_traces"), computes=True,
)  # fmt: skip
def main(config: Config) -> None:
    from tqdm import tqdm

    from vold_nemo.config.launcher import launch
    from vold_nemo.data.prompts import read_prompts
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import load_tokenizer
    from vold_nemo.data.traces import TraceWriter, shard_path, shared_otherwise
    from vold_nemo.evaluation.teacher_errors import TraceJudge, TraceReport, write_report
    from vold_nemo.models.trace_engine import trace_engine
    from vold_nemo.rollout.tracing import TeacherTraces, dataset_of, own_traces, settings, wanted

    started, here, own = time.monotonic(), launch(), config.traces.engine == "dataset"
    # Every task of a job step takes a shard of its own: no process group, no rank that waits for another.
    shard = config.traces.shard * here.world + here.rank
    shards = config.traces.shards * here.world
    path = shard_path(config.traces.path, shard, shards)
    file = shard_path(path.parent / "rejected.jsonl", shard, shards)
    rejected = Rejected(file, config.data.max_rejected_share, key="traces.path")
    tokenizer = None if own else load_tokenizer(config.teacher.path, config.teacher.revision)
    # The set's own traces are too large to be held: they are read as they are written.
    prompts = [] if own else list(read_prompts(dataset_of(config), rejected, wanted(config)))[shard::shards]
    report, judge = TraceReport(len(prompts)), TraceJudge(config.reward, prompts) if config.traces.verify else None

    others, mine = shared_otherwise(config.traces.path, shards), {prompt.id for prompt in prompts}
    with TraceWriter(path, settings(config, tokenizer), note=report.note, others=others, mine=mine) as writer:
        found, tokens = len(writer.done), 0
        if own:
            blocks = own_traces(config, shard, shards, rejected, writer.done)
        else:
            teacher = TeacherTraces(config, tokenizer, prompts, rejected, lambda: trace_engine(config, here.local_rank))
            blocks = teacher.blocks(writer.done)
        total = None if own else len(prompts) * config.traces.samples_per_prompt
        with tqdm(total=total, initial=found, unit="trace", desc=f"traces {shard + 1}/{shards}", smoothing=0.05) as bar:
            for rows in blocks:
                new = [row for row in rows if (row["id"], row["sample"]) not in writer.done]
                if judge is not None:
                    judge(new)
                writer.write(new)
                tokens += sum(row["response_tokens"] or 0 for row in rows)
                bar.update(len(new))
                rate = f"{tokens / (time.monotonic() - teacher.ready):,.0f} tokens/s, " if not own else ""
                bar.set_postfix_str(f"{rate}{writer.dropped} dropped")
        done, dropped = len(writer.done), writer.dropped
    if judge is not None:
        judge.close()
    report.prompts = report.prompts or len({name for name, _ in writer.done})
    whole = write_report(report, config.traces.path, shard, shards)
    if rejected.count():
        print(f"rejected {rejected.count()} rows ({rejected.summary()}): {rejected.path}")
    print(
        f"{path}: {done - dropped} traces of {report.prompts} prompts, {dropped} dropped at {config.traces.max_tokens} tokens; "
        f"{found} were there before; {tokens} tokens in {time.monotonic() - started:.0f} s"
    )
    print("\n".join((whole if whole is not None else report).describe()), end="\n" if report.total.judged else "")


if __name__ == "__main__":
    main()
