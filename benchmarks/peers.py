"""A step of ours beside a step of TRL's trainers: the same student, teacher, prompts and number of rollouts, on one CPU rank.

    make demo && make test-trl        (the miniature's checkpoints; TRL's environment)
    python benchmarks/peers.py json=true
    python benchmarks/peers.py world=outputs/miniature_world student=outputs/miniature_tp2/sft/hf steps=8

Arms, each a process of its own in its own environment, one after the other, ``repeats`` times in turn:

    grpo           GRPO, one update a step                     trl_grpo           trl.GRPOTrainer
    distillation   exact reverse KL on every rollout           trl_distillation   trl.DistillationTrainer, beta = 1
    vold           both, the KL on wrong rollouts (TRL has no such trainer)

The student is the miniature's after stage 1, the teacher the miniature's.  TRL gets the student's language model as a
checkpoint of its own, since its trainers would feed a vision tower, too, and a teacher whose table has as many rows as the
student's, since it refuses another; ours gets both as they are.  Prompts, sampling (temperature 1), the reward (the box must
hold the answer), learning rate and fp32 are the same.  ``micro_batch_tokens`` and ``trl_batch`` (rollouts; 0: all of a step)
say how much either trains on at a time; each has what suits it on a CPU (TRL's seconds hardly depend on it, its memory does).

``seconds``: processor seconds of a step, from the end of one to the end of the next with all that is between, children
included; the median of all but the first.  ``phases``: of ours as its clock has them; of TRL's generation (and the
rewards), loss and backward (and, of a distillation, the teacher), and the rest.  ``memory``: the process's highest
resident set less what stood after the imports.

Keys: world, student, trl_python, prompts, samples, max_tokens, steps, repeats, micro_batch_tokens, trl_batch, threads, seed,
arms (comma separated), json, results (path without suffix, or empty).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine, parse, tell  # noqa: E402

DEFAULTS = {
    "world": str(ROOT / "outputs/miniature_world"), "student": str(ROOT / "outputs/miniature_tp2/sft/hf"),
    "trl_python": str(ROOT / ".venv-trl/bin/python"), "prompts": 32, "samples": 5, "max_tokens": 40, "steps": 6, "repeats": 3,
    "micro_batch_tokens": 1024, "trl_batch": 40, "threads": 1, "seed": 0, "json": False,
    "arms": "grpo,trl_grpo,distillation,trl_distillation,vold", "results": str(ROOT / "benchmarks/results/peers"),
}  # fmt: skip
PAIRS = {"grpo": "trl_grpo", "distillation": "trl_distillation"}
ARMS = (*PAIRS, *PAIRS.values(), "vold")


def prepare(s: dict, folder: Path) -> None:
    """What TRL's arms load: the student's language model, and the teacher with as many rows.

    Raises:
        SystemExit: a checkpoint or TRL's environment is missing.
    """
    for what, mend in ((s["student"], "make demo"), (s["world"], "make demo"), (s["trl_python"], "make test-trl")):
        if not Path(what).exists():
            raise SystemExit(f"{what} does not exist: `{mend}` makes it")
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    tokenizer, whole = AutoTokenizer.from_pretrained(s["student"]), AutoModelForImageTextToText.from_pretrained(s["student"])
    text = whole.config.get_text_config()
    keys = set(Qwen2Config().to_dict()) - {"model_type", "architectures", "transformers_version"}
    said = {key: value for key, value in text.to_dict().items() if key in keys}
    said["rope_parameters"] = {"rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"]}
    student = Qwen2ForCausalLM(Qwen2Config(**said | {"tie_word_embeddings": whole.config.tie_word_embeddings}))
    student.model.load_state_dict(whole.model.language_model.state_dict())
    if not whole.config.tie_word_embeddings:
        student.lm_head.load_state_dict(whole.lm_head.state_dict())
    ids = torch.tensor([tokenizer("kindly ( eight ) ( plus four ) ( times nine )\nsolve", add_special_tokens=False).input_ids])
    with torch.no_grad():  # the same model: mRoPE over text is the plain rotary embedding
        assert torch.allclose(student(ids).logits, whole(input_ids=ids).logits, atol=1e-5)
    teacher = AutoModelForCausalLM.from_pretrained(Path(s["world"]) / "teacher")
    teacher.resize_token_embeddings(text.vocab_size, mean_resizing=False)
    for model, name in ((student, "student"), (teacher, "teacher")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def run(arm: str, s: dict, folder: Path, repeat: int) -> dict:
    """One process; what it wrote."""
    theirs = arm.startswith("trl_")
    python, script = (s["trl_python"], "peers_trl.py") if theirs else (sys.executable, "peers_ours.py")
    out = folder / f"{arm}_{repeat}.json"
    settings = s | {"arm": arm, "folder": str(folder), "out": str(out), "seed": s["seed"] + repeat}
    environment = os.environ | {
        "OMP_NUM_THREADS": str(s["threads"]), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [python, str(ROOT / "benchmarks" / script), json.dumps(settings)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arm} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(out.read_text())


def summary(runs: list[dict]) -> dict:
    """Medians over all steps but each run's first, and over runs."""
    steps = [step for one in runs for step in one["steps"][1:]]
    names = dict.fromkeys(name for step in steps for name in step["phases"])
    return {
        "seconds": statistics.median(step["seconds"] for step in steps),
        "phases": {name: statistics.median(step["phases"].get(name, 0.0) for step in steps) for name in names},
        "memory": statistics.median(one["peak"] - one["imported"] for one in runs),
        "imported": statistics.median(one["imported"] for one in runs),
        "tokens": statistics.mean(step["tokens"] for step in steps),
        "reward": statistics.mean(rewards) if (rewards := [x["reward"] for x in steps if x["reward"] is not None]) else None,
        "versions": runs[0]["versions"],
    }


def measure(s: dict) -> dict:
    arms = s["arms"].split(",")
    if unknown := set(arms) - set(ARMS):
        raise SystemExit(f"arms={','.join(sorted(unknown))}: unknown; allowed: {', '.join(ARMS)}")
    with tempfile.TemporaryDirectory() as name:
        prepare(s, Path(name))
        runs: dict[str, list[dict]] = {arm: [] for arm in arms}
        for repeat in range(s["repeats"]):
            for arm in arms:
                print(f"{repeat + 1} of {s['repeats']}: {arm}", file=sys.stderr, flush=True)
                runs[arm].append(run(arm, s, Path(name), repeat))
    found = {arm: summary(done) for arm, done in runs.items()}
    ratios = {
        ours: {what: found[ours][what] / found[theirs][what] for what in ("seconds", "memory")}
        for ours, theirs in PAIRS.items() if ours in found and theirs in found
    }  # fmt: skip
    return {"arms": found, "of_trl": ratios}


def table(s: dict, found: dict, where: str) -> str:
    lines = [
        "# A step of ours beside a step of TRL's", "",
        "Made by `benchmarks/peers.py`; see its docstring. Processor seconds.", "",
        "| arm | seconds a step | of TRL's | phases | memory, MB | of TRL's | tokens an answer | reward |",
        f"|{'---|' * 8}",
    ]  # fmt: skip
    for arm, r in found["arms"].items():
        shares = found["of_trl"].get(arm, {})
        seconds, memory = (f"{shares[what]:.2f}" if shares else "" for what in ("seconds", "memory"))
        phases = ", ".join(f"{name} {value:.2f}" for name, value in r["phases"].items() if value >= 0.005)
        lines.append(f"| {arm} | {r['seconds']:.2f} | {seconds} | {phases} | {r['memory'] / 1e6:.0f} | {memory} | "
                     f"{r['tokens']:.1f} | {'' if r['reward'] is None else format(r['reward'], '.2f')} |")  # fmt: skip
    settings = ", ".join(f"{key}={value}" for key, value in s.items() if not isinstance(value, str | bool))
    versions = "; ".join(dict.fromkeys(r["versions"] for r in found["arms"].values()))
    return "\n".join([*lines, "", f"Settings: {settings}. {versions}.", f"Measured on {where}.", ""])


def main(arguments: list[str]) -> None:
    s = parse(arguments, DEFAULTS)
    s |= {key: str(Path(s[key]).absolute()) for key in ("world", "student", "trl_python")}
    found, where = measure(s), machine("cpu")
    tell(s, found, where, table(s, found, where))


if __name__ == "__main__":
    main(sys.argv[1:])
