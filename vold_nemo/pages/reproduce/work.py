"""Which arms of a target are there, and what makes the others: here, one process after the other, or as Slurm chains."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.places import recipes, slurm
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.evaluation.results import Results
from vold_nemo.pages.reproduce.targets import ARMS, EXPERIMENTS, Arm, Target

TRAINING = ("generate_traces", "sft", "vold")
_OURS = ("reproduce.", "experiment=", "name=")


@dataclass(frozen=True)
class Call:
    """One recipe; ``ranks`` > 1 are started by torchrun."""

    recipe: str
    overrides: tuple[str, ...]
    ranks: int = 1

    def command(self) -> list[str]:
        script = [str(recipes() / f"{self.recipe}.py"), *self.overrides]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        return [sys.executable, *(launcher if self.ranks > 1 else []), *script]


class Reproduction:
    """The arms of a target under one experiment.  ``overrides`` are the user's, which every step gets."""

    def __init__(self, config: Config, target: Target, scale: str, overrides: list[str]):
        self.config, self.target, self.scale = config, target, scale
        self.overrides = tuple(o for o in overrides if not o.lstrip("+~").startswith(_OURS))
        self.arms = [ARMS[name] for name in target.arms[scale]]

    def name_of(self, arm: Arm) -> str:
        return self.config.name + arm.suffix

    def run_of(self, arm: Arm) -> Path:
        """The arm's run folder; arms with a folder of their own keep their model where VOLD's usual arm is."""
        return Path(self.config.outputs) / self.name_of(arm) / ("sft_vold" if arm.suffix else arm.name)

    def checkpoint_of(self, arm: Arm) -> Path:
        return Path(self.config.student.path) if arm.name == "base" else self.run_of(arm) / "hf"

    def finished(self, arm: Arm) -> bool:
        """An export is written last: where it is whole, the arm is."""
        folder = self.checkpoint_of(arm)
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))

    def missing(self) -> list[Arm]:
        """The arms to make, each after the one it starts from."""
        wanted: list[Arm] = []
        for arm in self.arms:
            before = ARMS[arm.after] if arm.after is not None else None
            wanted += [one for one in (before, arm) if one is not None and not self.finished(one) and one not in wanted]
        return wanted

    def steps(self, arm: Arm) -> list[Call]:
        """The recipes that make ``arm``, and its export."""
        if arm.name == "base":
            raise ConfigError("student.path", str(self.checkpoint_of(arm)), "a checkpoint folder",
                              "make the world with recipes/prepare_miniature.py, or fetch the student")  # fmt: skip
        experiment = arm.experiment.get(self.scale, EXPERIMENTS[self.scale])
        fill = {"outputs": self.config.outputs, "name": self.name_of(arm)}
        common = (f"experiment={experiment}", f"name={self.name_of(arm)}", *self.overrides)
        own = arm.miniature if self.scale == "miniature" else arm.paper
        found = []
        if self.scale == "miniature" and arm.suffix:
            found.append(Call("prepare_miniature", (*common, *(o.format(**fill) for o in own))))
        for recipe, overrides in arm.recipes:
            filled = tuple(o.format(**fill) for o in (*own, *overrides))
            found.append(Call(recipe, (*common, *filled), self._ranks(recipe)))
        run = "sft_vold" if arm.suffix else arm.name
        worldly = tuple(o.format(**fill) for o in own if o.startswith("miniature."))
        found.append(Call("export_hf", (*common, *worldly, f"export.run={self.name_of(arm)}/{run}", "parallel=single")))
        return found

    def _ranks(self, recipe: str) -> int:
        from vold_nemo.planning.validity import submitted_world

        return submitted_world(self.config, recipe) if recipe in ("sft", "vold") else 1

    def listing(self) -> str:
        """The commands that are still to be run, as a shell script."""
        title = f"# {self.target.name}: what is missing at {self.scale} scale."
        lines = ["#!/usr/bin/env bash", title, "set -euo pipefail"]
        for arm in self.missing():
            lines.append(f"# {arm.name}: {arm.title}")
            lines += [" ".join(shlex.quote(word) for word in step.command()) for step in self.steps(arm)]
        return "\n".join(lines) + "\n"

    def run(self) -> None:
        """Make the missing arms here, one after the other.  A recipe that fails ends it with what it said."""
        for arm in self.missing():
            for step in self.steps(arm):
                print(f"== {arm.name}: {step.recipe}", flush=True)
                done = subprocess.run(step.command())
                if done.returncode:
                    raise ConfigError(f"reproduce: {arm.name}", f"recipes/{step.recipe}.py left with {done.returncode}",
                                      "0", "see above; started again, it goes on from its newest checkpoint")  # fmt: skip

    def write_slurm(self, folder: Path) -> list[Path]:
        """A call of slurm/pipeline.sh for each missing arm, in order; recipes/chain.py checks them when they are called.

        Each is a chain of its own name, since a chain that is submitted anew cancels its own jobs in the queue; the runs stay
        where the other arms look for them.
        """
        stages = {"sft": "sft export_sft", "vold": "vold export_vold", "generate_traces": "traces"}
        written = []
        for arm in self.missing():
            name = self.name_of(arm)
            wanted = " ".join(stages[recipe] for recipe, _ in arm.recipes if recipe in stages)
            overrides = [o for step in self.steps(arm) if step.recipe in TRAINING for o in step.overrides]
            if not arm.suffix:
                here = [f"traces.path={self.config.outputs}/{name}/traces/traces.jsonl", f"sft.run={name}/sft"]
                here.append(f"vold.run={name}/{arm.name}")
                overrides = [f"name={name}_{arm.name}" if o == f"name={name}" else o for o in here + overrides]
            last = {override.partition("=")[0]: override for override in overrides}  # of one key the last one counts
            words = ["bash", str(slurm() / "pipeline.sh"), *last.values()]
            file = folder / f"{len(written):02d}_{arm.name}.sh"
            after = f"# Start it when {arm.after} is exported.\n" if arm.after is not None else ""
            line = " ".join(shlex.quote(word) for word in words)
            text = f"#!/usr/bin/env bash\n# {arm.title}\n{after}set -euo pipefail\nSTAGES={shlex.quote(wanted)} {line}\n"
            with writing("reproduce.path", folder):
                replace_text(file, text)
                file.chmod(0o755)
            written.append(file)
        return written


def accuracies(work: Reproduction) -> Results | None:
    """``results.json`` with all arms of the target; read where it is, else made from the answers (known ones are kept).

    None while an arm is missing.
    """
    from vold_nemo.evaluation.benchmark import evaluate

    arms = {arm.name: str(work.checkpoint_of(arm)) for arm in work.arms if work.finished(arm)}
    if len(arms) < len(work.arms):
        return None
    options = work.config.evaluate
    file = Path(options.path) / "results.json"
    known = Results.of_file(file) if file.is_file() else Results({}, {}, {}, {})
    sets = work.target.sets if work.scale == "paper" else ("text", "image")
    if all(set(sets) <= set(known.accuracy.get(arm, {})) for arm in arms):
        return known
    options.models = {**{name: model.path for name, model in known.models.items()}, **arms}
    options.benchmarks = list(dict.fromkeys([*options.benchmarks, *(sets if work.scale == "paper" else ())]))
    return evaluate(work.config)
