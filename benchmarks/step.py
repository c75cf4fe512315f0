"""One VOLD step beside one GRPO step, on the same rollouts, at several reward rates: what distillation costs end to end.

    python benchmarks/step.py json=true
    python benchmarks/step.py hidden=128 layers=4 teacher_hidden=192 teacher_layers=5 rows=4096

The real step (`models/vold.py: train_step`), student, teacher and optimizer, on random Qwen2.5-VL and Qwen3 checkpoints of the
given size, one rank.  The transformers engine samples once, timed; every arm then trains on those rollouts.  Rewards are drawn:
a prompt is answered rightly with a probability of its own, Beta(c·rate, c·(1 - rate)), so that some groups are all right or all
wrong, as in training (``concentration=c``; the smaller, the more of them).  Arms:

    vold        GRPO + masked KL; what cannot move a gradient is skipped
    grpo        no KL, no teacher; groups without an advantage are skipped as well
    grpo_whole  the same, nothing skipped: the usual implementation

Seconds are processor time, which other work on the machine distorts little: those of the median of ``repeats`` steps, the
arms taking turns, after one step to warm up.  They are split into ``teacher``, ``objective`` (`objective.vold_loss`: log-probs,
KL and their gradients at the LM head) and ``rest`` (forward and backward of the student, optimizer, weight sync, plan).
``train_ratio`` compares sums without generation, ``total_ratio`` with it.

What VOLD must cost beyond GRPO is the teacher's forward pass over the answers that it corrects, and training on groups that
GRPO skips.  In operations (two a weight and token forward, twice that backward; of trained and scored rollouts, no padding):

    limit = GRPO's seconds × FLOPs(VOLD) / FLOPs(GRPO)        `flops` says what is counted

and ``of_limit`` = VOLD's seconds / limit.  It says something where products rule: hidden >= 512 and rows >= 32,768.

Keys: prompts, samples, max_tokens, prompt_tokens, rates (comma separated), concentration, estimator, layers, hidden, rows,
teacher_layers, teacher_hidden, micro_batch_tokens, repeats, threads, seed, json, results (path without suffix, or empty).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine, parse, tell  # noqa: E402

DEFAULTS = {
    "prompts": 16, "samples": 5, "max_tokens": 64, "prompt_tokens": 32, "rates": "0.2,0.5,0.8", "concentration": 2.0,
    "estimator": "reverse", "layers": 4, "hidden": 512, "rows": 32768, "teacher_layers": 5, "teacher_hidden": 768,
    "micro_batch_tokens": 2048, "repeats": 3, "threads": 1, "seed": 0, "json": False,
    "results": str(ROOT / "benchmarks/results/step"),
}  # fmt: skip
ARMS = {
    "vold": ["objective=vold"],
    "grpo": ["objective=grpo"],
    "grpo_whole": ["objective=grpo", "objective.skip=false"],
}
PHASES = ("teacher", "objective", "rest")


class Replay:
    """In the sampler's place: rollouts that were sampled before, and rewards that were drawn."""

    def __init__(self, engine, step):
        self.engine, self.step, self.rewards = engine, step, []

    def sample(self, number: int, phase, silent):
        step = self.step.pick_groups(range(len(self.step.prompts)))
        step["reward"] = self.rewards
        self.last = step  # what a step chooses, it writes into its columns
        return step, {"own_seconds": 0.0}

    def validate(self, number: int) -> dict:
        return {}

    def records(self, number: int) -> bool:
        return False

    def name(self, step, row: int) -> str:
        return f"prompt {row // step.samples}"


class Tokenizer:
    """Every id of the table is a token of both models, as all but four in a thousand of Qwen2.5's and Qwen3's are."""

    eos_token_id, added_tokens_decoder = 1, {}

    def __init__(self, rows: int):
        self.rows = rows

    def get_vocab(self) -> dict[str, int]:
        return {f"token {number}": number for number in range(self.rows)}


class Stopwatch:
    """Adds up the processor seconds of every call of the functions that :meth:`watch` has wrapped."""

    def __init__(self):
        self.seconds = 0.0

    def watch(self, owner, name: str) -> None:
        inner = getattr(owner, name)

        def timed(*arguments, **options):
            began = time.process_time()
            try:
                return inner(*arguments, **options)
            finally:
                self.seconds += time.process_time() - began

        setattr(owner, name, timed)


def sample(engine, s: dict):
    """Rollouts of random prompts by the student itself, and the seconds they took."""
    import random

    from vold_nemo.rollout.engine import EnginePrompt, Sampling
    from vold_nemo.step import Step

    chance = random.Random(s["seed"])
    prompts = [[chance.randrange(12, 50) for _ in range(s["prompt_tokens"])] for _ in range(s["prompts"])]
    began = time.process_time()
    done = engine.generate(
        [EnginePrompt(ids, key=place) for place, ids in enumerate(prompts)],
        Sampling(s["samples"], 1.0, s["max_tokens"], seed=s["seed"]),
    )
    seconds = time.process_time() - began
    done.sort(key=lambda c: (c.prompt_index, c.sample))
    return Step.of(prompts, [c.ids for c in done], s["samples"], engine=[c.logprobs for c in done]), seconds


def flops(step, student, teacher, rows: int) -> float:
    """Operations of the products that training on ``step``, planned, asks for; a multiplication and an addition are two.

    A forward pass over L tokens takes 2 W L + 4 A L², W weights and A = heads × head dim of all layers; a token's logits
    2 ``rows`` × hidden.  Trained rollouts take that three times (backward: twice), the logits of response tokens alone; scored
    ones once, of the teacher.
    """

    def body(shape, length: int) -> int:
        wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        weights = shape.hidden * (2 * wide + 2 * narrow + 3 * shape.ffn)
        return shape.layers * (2 * weights * length + 4 * wide * length**2)

    lengths, answers = step.lengths.tolist(), step.responses.lengths.tolist()
    total = 0.0
    for shape, times, chosen in ((student, 3, step["trained"]), (teacher, 1, step["scored"])):
        for row in chosen.nonzero().flatten().tolist():
            total += times * (body(shape, lengths[row]) + 2 * rows * shape.hidden * answers[row])
    return total


def draw_rewards(rate: float, s: dict) -> list[float]:
    """The first draw whose mean is within 0.025 of ``rate``."""
    import random

    chance, c = random.Random(f"{s['seed']}/{rate}"), s["concentration"]
    while True:
        odds = [chance.betavariate(c * rate, c * (1 - rate)) for _ in range(s["prompts"])]
        rewards = [float(chance.random() < p) for p in odds for _ in range(s["samples"])]
        if abs(sum(rewards) / len(rewards) - rate) <= max(0.025, 1 / len(rewards)):
            return rewards


def build(arm: str, folder: Path, s: dict, engine, step):
    """A stage 2 model of this arm, ready to step; its run folder is ``folder / arm``."""
    from omegaconf import OmegaConf

    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.config.compose import compose
    from vold_nemo.data.vocabulary import VocabularyContract
    from vold_nemo.megatron import parallel, weights
    from vold_nemo.models.teachers import assemble
    from vold_nemo.models.vold import MegatronVOLDModel

    config = compose([
        "experiment=miniature", *ARMS[arm], f"student.path={folder}/student", f"teacher.path={folder}/teacher",
        f"vold.start={folder}/student", f"outputs={folder}/{arm}", "logging.tensorboard=false", "vold.updates_per_step=1",
        f"vold.prompts_per_step={s['prompts']}", f"rollout.samples_per_prompt={s['samples']}",
        f"rollout.max_tokens={s['max_tokens']}", f"vold.micro_batch_tokens={s['micro_batch_tokens']}", f"seed={s['seed']}",
        # the student moves while the rollouts stay: the log-prob probe has nothing to say
        "rollout.probe_tolerance=1e9", "vold.optimizer.learning_rate=1e-6",
        *([f"objective.kl.estimator={s['estimator']}"] if arm == "vold" else []),
    ])  # fmt: skip
    layout = parallel.current()
    model = MegatronVOLDModel(OmegaConf.structured(config))
    teachers = assemble(config, layout, padded_vocabulary=model.padded_vocabulary)
    contract = VocabularyContract.from_tokenizers(
        Tokenizer(s["rows"]), s["rows"], Tokenizer(s["rows"]) if teachers else None, s["rows"] if teachers else None,
        padded=model.padded_vocabulary,
    )
    model.load_pretrained(weights.Files(config.vold.start))
    model.prepare_for_training()
    model.attach(Replay(engine, step), contract, teachers, Run(folder / arm, rank=0))
    return model


def measure(s: dict) -> list[dict]:
    """One entry a reward rate: seconds of every arm by phase, what was skipped, and the ratios."""
    import torch

    from vold_nemo.megatron import cpu, parallel
    from vold_nemo.miniature.random_models import write_random_student, write_random_teacher
    from vold_nemo.models import vold
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    torch.set_num_threads(s["threads"])
    cpu.enable()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student, teacher = shaped(s["layers"], s["hidden"]), shaped(s["teacher_layers"], s["teacher_hidden"])
        write_random_student(folder / "student", student, rows=s["rows"])
        write_random_teacher(folder / "teacher", teacher, rows=s["rows"])
        engine = TransformersEngine(
            folder / "student", device=torch.device("cpu"), batch=s["prompts"] * s["samples"], dtype=torch.float32,
            stop_ids=(1,),
        )  # fmt: skip
        sampled, generation = sample(engine, s)
        parallel.initialize(1, 1, sequence=False, seed=s["seed"], device="cpu")
        models = {arm: build(arm, folder, s, engine, sampled) for arm in ARMS}
        scoring, objective, found, number = Stopwatch(), Stopwatch(), [], 0
        scoring.watch(models["vold"].teachers, "hidden_states")
        objective.watch(vold, "vold_loss")  # gradients are formed in the call: this is forward and backward
        for rate in map(float, s["rates"].split(",")):
            rewards, taken, said, work = draw_rewards(rate, s), {arm: [] for arm in ARMS}, {}, {}
            for repeat in range(s["repeats"] + 1):
                for arm, model in models.items():
                    model.sampler.rewards, scoring.seconds, objective.seconds = rewards, 0.0, 0.0
                    began = time.process_time()
                    said[arm] = model.train_step(number)
                    rest = time.process_time() - began - scoring.seconds - objective.seconds
                    if repeat:  # the first one warms up
                        taken[arm].append((scoring.seconds, objective.seconds, rest))
                    work[arm] = flops(model.sampler.last, student, teacher, s["rows"])
                number += 1
            found.append(compare(rate, rewards, taken, said, work, generation))
        parallel.destroy()
    return found


def shaped(layers: int, hidden: int):
    from vold_nemo.miniature.random_models import TINY

    return replace(TINY, layers=layers, hidden=hidden, head_dim=hidden // TINY.heads, ffn=4 * hidden)


def compare(rate: float, rewards: list[float], taken: dict, said: dict, work: dict, generation: float) -> dict:
    arms = {}
    for arm, steps in taken.items():
        middle = sorted(steps, key=sum)[len(steps) // 2]
        arms[arm] = {
            **dict(zip(PHASES, middle, strict=True)), "train": statistics.median(map(sum, steps)),
            "trained_rollouts": said[arm]["trained_rollouts"], "scored_rollouts": said[arm]["scored_rollouts"],
            "skipped_groups": said[arm]["skipped_groups"], "flops": work[arm],
        }  # fmt: skip
    vold = arms["vold"]["train"]
    against = {arm: r["train"] for arm, r in arms.items() if arm != "vold"}
    limit = against["grpo"] * work["vold"] / work["grpo"]
    return {
        "rate": rate, "drawn_rate": sum(rewards) / len(rewards), "rollouts": len(rewards), "generation": generation,
        "arms": arms, "limit": limit, "of_limit": vold / limit,
        "train_ratio": {arm: vold / seconds for arm, seconds in against.items()},
        "total_ratio": {arm: (vold + generation) / (seconds + generation) for arm, seconds in against.items()},
    }  # fmt: skip


def table(s: dict, found: list[dict], where: str) -> str:
    columns = (
        "reward rate", "arm", "trained", "scored", "TFLOPs", *PHASES, "train", "with generation", "VOLD / this, train",
        "VOLD / this, with generation",
    )  # fmt: skip
    lines = [
        "# One VOLD step beside one GRPO step", "",
        "Made by `benchmarks/step.py`; see its docstring. Processor seconds; all arms have the same rollouts.",
        "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}",
    ]  # fmt: skip
    for run in found:
        for arm, r in run["arms"].items():
            seconds = [f"{r[phase]:.3f}" for phase in (*PHASES, "train")] + [f"{r['train'] + run['generation']:.3f}"]
            shares = [f"{run[name][arm]:.2f}" if arm in run[name] else "" for name in ("train_ratio", "total_ratio")]
            counts = f"{r['trained_rollouts']} of {run['rollouts']} | {r['scored_rollouts']} | {r['flops'] / 1e12:.3f}"
            lines.append(f"| {run['drawn_rate']:.2f} | {arm} | {counts} | {' | '.join(seconds + shares)} |")
    lines += ["", "| reward rate | limit: GRPO's seconds by operations | VOLD | VOLD / limit |", "|---|---|---|---|"]
    for run in found:
        numbers = (run["limit"], run["arms"]["vold"]["train"], run["of_limit"])
        lines.append(f"| {run['drawn_rate']:.2f} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    settings = ", ".join(f"{key}={value}" for key, value in s.items() if key not in ("json", "results"))
    return "\n".join([*lines, "", f"Settings: {settings}.", f"Measured on {where}.", ""])


def main(arguments: list[str]) -> None:
    s = parse(arguments, DEFAULTS)
    os.environ.update(OMP_NUM_THREADS=str(s["threads"]), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from vold_nemo.command.quiet import quiet, quiet_nemo

    quiet()
    quiet_nemo()
    found, where = measure(s), machine("cpu")
    tell(s, found, where, table(s, found, where))


if __name__ == "__main__":
    main(sys.argv[1:])
