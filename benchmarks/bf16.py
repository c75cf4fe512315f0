"""The miniature in bf16 beside the same in fp32: accuracies, and how far engine and trainer, losses and gradients are apart.

    python benchmarks/bf16.py                                   three seeds, stage 1 and VOLD: some 25 minutes on two idle cores
    python benchmarks/bf16.py arms=sft_vold,sft_grpo            the GRPO arm, too
    python benchmarks/bf16.py outputs=scratch seeds=1 share=0.1 results=

One world (teacher, base student, questions; `recipes/prepare_miniature.py`) serves all runs.  A run is `make demo`'s, of one
seed and one precision from end to end: the teacher writes traces, stage 1, stage 2, export, evaluation on 800 text and 800
image questions, greedily.  ``precision`` is that of student, teacher, rollout engine and evaluation; both precisions have
``optimizer.distributed=true``, so that in bf16 fp32 masters are sharded over the data-parallel ranks, and nothing else
differs.  Stage 2's students are evaluated in the other precision as well.  ``share``: of stage 2's steps, which then runs its
whole schedule of rates in fewer; ``side_by_side=true``: both precisions of a seed at once.

A run that is in ``results`` already is not done again, one that was interrupted goes on where it stood.  At the end
`bf16_gaps.py` takes the log-prob gap of engine and trainer apart, on the first seed's student.

Keys: outputs, name, seeds, precisions, arms, parallel, ranks, share, side_by_side, threads, prompts (of the gap), json,
results (path without suffix, or empty).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine, parse, tell  # noqa: E402

DEFAULTS = {
    "outputs": "outputs", "name": "precision", "seeds": "1,2,3", "precisions": "fp32,bf16", "arms": "sft_vold",
    "parallel": "dp2", "ranks": 2, "share": 1.0, "side_by_side": False, "threads": 1, "prompts": 40, "json": False,
    "results": str(ROOT / "benchmarks/results/bf16"),
}  # fmt: skip
EXPERIMENT = {"sft": "miniature", "sft_vold": "miniature", "sft_grpo": "miniature_grpo"}
STEPS = {"sft_vold": 70, "sft_grpo": 50}
KINDS = ("text", "image")
# Of metrics.jsonl: what a run keeps, each as means over all steps, the first and last tenth, and the largest
CURVES = (
    "loss", "grad_norm", "reward_mean", "kl_mean", "kl_min", "entropy", "clip_rate", "mismatch.mean", "mismatch.max",
    "mismatch.k3", "mismatch.effective_sample_size", "ratio_rollout_vs_train.mean", "ratio_rollout_vs_train.max",
    "updates_skipped",
)  # fmt: skip


class Recipes:
    """The verbs of one run, in processes of their own."""

    def __init__(self, s: dict, precision: str, seed: int):
        self.s, self.name = s, f"{s['name']}_{precision}_{seed}"
        self.folder = Path(s["outputs"]) / self.name
        self.common = [f"outputs={s['outputs']}", f"name={self.name}", f"precision={precision}", f"seed={seed}"]

    def __call__(self, verb: str, *overrides: str, ranks: int = 1) -> None:
        """Run it; RuntimeError with the end of what it said if it fails."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launcher, str(ROOT / "recipes" / f"{verb}.py"), *self.common, *overrides]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{verb}.log").open("a") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} left with {done.returncode}; see {log.name}")

    def train(self, arm: str) -> None:
        """Stage 1 or 2 and its export."""
        verb, run = ("sft" if arm == "sft" else "vold"), f"{self.name}/{arm}"
        experiment, shape = f"experiment={EXPERIMENT[arm]}", []
        if arm in STEPS:
            shape = [f"vold.steps={max(2, round(self.s['share'] * STEPS[arm]))}", "vold.validation.every=0"]
        if not (self.folder / arm / "hf/config.json").exists():
            self(verb, experiment, f"parallel={self.s['parallel']}", f"{verb}.optimizer.distributed=true", *shape,
                 ranks=self.s["ranks"])  # fmt: skip
            self("export_hf", experiment, f"export.run={run}")

    def evaluate(self, arms: list[str], precision: str) -> dict:
        """{arm: {text | image: "0110..."}}, a digit a question in the order of their ids; answered in ``precision``."""
        path = self.folder / f"evaluation_{precision}"
        if not (path / "results.json").exists():
            unwanted = [f"~evaluate.models.{arm}" for arm in ("base", *EXPERIMENT) if arm not in arms]
            self("evaluate", "experiment=miniature", *unwanted, "evaluate.samples=0", f"evaluate.path={path}",
                 f"precision={precision}", ranks=self.s["ranks"])  # fmt: skip
        return {arm: verdicts(path / f"answers/{arm}.jsonl") for arm in arms}


def verdicts(file: Path) -> dict[str, str]:
    """What a file of answers says of each question: right or wrong."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = {kind: {row["id"]: row["reward"] for row in rows if row["set"] == kind} for kind in KINDS}
    return {kind: "".join(str(int(right)) for _, right in sorted(answers.items())) for kind, answers in found.items()}


def curves(file: Path) -> dict[str, dict[str, float]]:
    """Numbers of :data:`CURVES` over the steps of a run."""
    lines = [line for line in map(json.loads, file.read_text().splitlines()) if "loss" in line]
    found = {}
    for name in CURVES:
        outer, _, inner = name.partition(".")
        if outer in lines[0]:
            row = [line[outer][inner] if inner else line[outer] for line in lines]
            tenth = max(1, len(row) // 10)
            found[name] = {
                "mean": statistics.fmean(row), "first": statistics.fmean(row[:tenth]),
                "last": statistics.fmean(row[-tenth:]), "largest": max(row),
            }  # fmt: skip
    return found


def one_run(s: dict, precision: str, seed: int, base: bool) -> dict:
    """The method from end to end in ``precision``; its answers, curves and warnings."""
    recipe, arms = Recipes(s, precision, seed), ["sft", *s["arms"].split(",")]
    recipe("generate_traces", "experiment=miniature")
    for arm in arms:
        recipe.train(arm)
    other = {"fp32": "bf16", "bf16": "fp32"}[precision]
    said = (recipe.folder / "vold.log").read_text()
    return {
        "precision": precision, "seed": seed,
        "answers": recipe.evaluate([*(["base"] if base else []), *arms], precision),
        "answers_in_the_other": recipe.evaluate(arms[1:], other),
        "curves": {arm: curves(recipe.folder / arm / "metrics.jsonl") for arm in arms},
        "warnings": said.count("engine and trainer differ by"),
    }  # fmt: skip


def table(s: dict, found: dict, where: str) -> str:
    runs = {(run["precision"], run["seed"]): run for run in found["runs"]}
    arms = ["sft", *s["arms"].split(",")]
    lines = [
        "# The miniature in bf16 beside fp32", "",
        "Made by `benchmarks/bf16.py`; see its docstring, and docs/precision.md for what follows from it.", "",
        *accuracy_rows(["base", *arms], runs), "", *other_rows(runs), *curve_rows(arms, runs, s["precisions"].split(",")),
    ]  # fmt: skip
    if found["gaps"]:
        from benchmarks.bf16_gaps import rows

        lines += ["", *rows(found["gaps"])]
    settings = ", ".join(f"{key}={value}" for key, value in s.items() if key not in ("json", "results", "outputs"))
    return "\n".join([*lines, "", f"Settings: {settings}.", f"Run on {where}.", ""])


def accuracy(answers: str) -> float:
    """In per cent."""
    return 100 * answers.count("1") / len(answers)


def accuracy_rows(arms: list[str], runs: dict) -> list[str]:
    """Both precisions seed by seed, and their differences over the same questions."""
    from vold_nemo.evaluation.statistics import paired_difference

    lines = [
        "Accuracy in per cent, greedy, seed by seed, each run answered in its own precision; differences in points, with 95 %",
        "over questions; standard deviation between the seeds of fp32 / bf16.", "",
        "| arm | questions | fp32 | bf16 | bf16 - fp32 | mean | between seeds |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for arm in arms:
        for kind in KINDS:
            by: dict[str, dict[int, str]] = {"fp32": {}, "bf16": {}}
            for (precision, seed), run in sorted(runs.items()):
                if arm in run["answers"]:
                    by[precision][seed] = run["answers"][arm][kind]
            pairs = [(by["bf16"][seed], answers) for seed, answers in by["fp32"].items() if seed in by["bf16"]]
            said = [paired_difference([*map(int, first)], [*map(int, second)]) for first, second in pairs]
            cells = [
                ", ".join(f"{accuracy(answers):.1f}" for answers in by["fp32"].values()),
                ", ".join(f"{accuracy(answers):.1f}" for answers in by["bf16"].values()),
                "; ".join(f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]" for d in said),
                f"{100 * statistics.fmean(d.value for d in said):+.1f}" if said else "",
                " / ".join(f"{statistics.stdev(map(accuracy, of.values())):.1f}" for of in by.values() if len(of) > 1),
            ]
            lines.append(f"| {arm} | {kind} | {' | '.join(cells)} |")
    return lines


def other_rows(runs: dict) -> list[str]:
    """What the precision of the answers alone does."""
    lines = ["The same students answered in both precisions: questions that changed between right and wrong.", "",
             "| trained in | arm | questions | answers in fp32 | in bf16 | changed |", "|---|---|---|---|---|---|"]  # fmt: skip
    for (precision, seed), run in sorted(runs.items()):
        for arm, kinds in run["answers_in_the_other"].items():
            for kind, other in kinds.items():
                own = run["answers"][arm][kind]
                first, second = (own, other) if precision == "fp32" else (other, own)
                changed = sum(a != b for a, b in zip(own, other, strict=True))
                shown = f"{accuracy(first):.1f} | {accuracy(second):.1f} | {changed} of {len(own)}"
                lines.append(f"| {precision}, seed {seed} | {arm} | {kind} | {shown} |")
    return lines


def curve_rows(arms: list[str], runs: dict, precisions: list[str]) -> list[str]:
    """Numbers of metrics.jsonl, and how often the watch on engine and trainer spoke."""
    lines: list[str] = []
    for arm in arms:
        lines += ["", f"`metrics.jsonl` of {arm}, seed by seed: mean over all steps (first tenth -> last tenth; largest).", "",
                  f"| number | {' | '.join(precisions)} |", f"|---|{'---|' * len(precisions)}"]  # fmt: skip
        for name in (name for name in CURVES if name in next(iter(runs.values()))["curves"][arm]):
            cells = [[curve(run["curves"][arm][name]) for (p, _), run in sorted(runs.items()) if p == x] for x in precisions]
            lines.append(f"| {name} | {' | '.join(' <br> '.join(cell) for cell in cells)} |")
    told = {own: sum(run["warnings"] for (p, _), run in runs.items() if p == own) for own in precisions}
    return [*lines, "", "Warnings of the watch on engine and trainer: " + ", ".join(f"{p} {n}" for p, n in told.items()) + "."]


def curve(said: dict[str, float]) -> str:
    return f"{said['mean']:.3g} ({said['first']:.3g} -> {said['last']:.3g}; {said['largest']:.3g})"


def known(s: dict) -> list[dict]:
    """Runs that an earlier start has kept, if it had the same settings."""
    file = Path(s["results"]).with_suffix(".json")
    if not s["results"] or not file.exists():
        return []
    before = json.loads(file.read_text())
    same = ("arms", "parallel", "ranks", "share")
    return before["results"]["runs"] if all(before[key] == s[key] for key in same) else []


def main(arguments: list[str]) -> None:
    s = parse(arguments, DEFAULTS)
    os.environ.update(OMP_NUM_THREADS=str(s["threads"]), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    found, where = {"runs": known(s), "gaps": None}, machine("cpu")
    seeds, precisions = [int(seed) for seed in s["seeds"].split(",")], s["precisions"].split(",")
    Recipes(s, precisions[0], seeds[0])("prepare_miniature", "experiment=miniature")
    for seed in seeds:
        done = [run["precision"] for run in found["runs"] if run["seed"] == seed]
        with ThreadPoolExecutor(2 if s["side_by_side"] else 1) as pool:
            missing = [precision for precision in precisions if precision not in done]
            for run in pool.map(lambda precision, seed=seed: one_run(s, precision, seed, seed == seeds[0]), missing):
                found["runs"].append(run)
                tell(s, found, where, table(s, found, where))
    if s["prompts"]:
        from benchmarks import bf16_gaps

        run = Recipes(s, "bf16", seeds[0]).folder
        students = {arm: run / arm / "hf" for arm in ("sft", "sft_vold")}
        found["gaps"] = bf16_gaps.measure(s["outputs"], students, s["prompts"])
    tell(s, found, where, table(s, found, where))


if __name__ == "__main__":
    main(sys.argv[1:])
