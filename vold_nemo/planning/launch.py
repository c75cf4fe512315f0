"""The Slurm scripts of an experiment: one a stage, each whole in itself, in the order of the chain.  No torch.

    traces (an array)  ->  sft  ->  export_sft  ->  vold  ->  export_vold  ->  evaluate  ->  report

A script holds the site's ``#SBATCH`` lines and settings and hands over to slurm/stage.sbatch, which runs the recipe.  All are
written at once (recipes/chain.py), or one of them beside a plan (recipes/plan.py sbatch=FILE).
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.launcher import launched_world
from vold_nemo.config.places import root
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.planning import profiling, site
from vold_nemo.planning.chain import Wish, digest, keys

MARK = "VOLD_KEYS"  # the variable by which a script knows what to leave in its .done
_SINGLE = (
    "parallel.tensor=1", "parallel.pipeline=1", "parallel.context=1", "parallel.expert=1", "parallel.sequence=false",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One job: ``name`` in the chain, the recipe it runs with ``overrides``, on ``tasks`` ranks."""

    name: str
    recipe: str
    tasks: int = 1
    overrides: tuple[str, ...] = ()
    gpus: int = 1  # of a task
    progress: str = ""  # file that changes whenever work is safe
    array: int = 0  # tasks of the job array; 0 = no array


def stages(config: Config) -> list[Stage]:
    """The chain of ``config``.  ``cluster.gpus`` says how many ranks a stage gets; null = as many as one copy of the model."""
    outputs, arm = Path(config.outputs), config.objective.arm
    copy = config.parallel.model_ranks
    gpus, shards = config.cluster.gpus, config.traces.shards
    sft, vold = outputs / config.sft.run, outputs / config.vold.run
    arms = {"base": config.student.path, "sft": str(sft / "hf"), arm: str(vold / "hf")}
    traces, engine = Path(config.traces.path), config.traces.tensor_parallel
    tasks = max(1, (gpus.traces or 1) // engine)
    # Every task writes a shard of its own: the first one of a job stands for them.
    first = f"$((SLURM_ARRAY_TASK_ID * {tasks}))" if shards > 1 else "0"
    written = traces if shards * tasks == 1 else traces.with_name(f"{traces.stem}.{first}-of-{shards * tasks}{traces.suffix}")
    return [
        Stage(
            "traces", "generate_traces", tasks, gpus=engine, progress=str(written),
            overrides=("traces.shard=${SLURM_ARRAY_TASK_ID}",) if shards > 1 else (), array=shards if shards > 1 else 0,
        ),
        Stage("sft", "sft", gpus.sft or copy, progress=str(sft / "checkpoints" / "latest")),
        # An export reads any layout, in one process that never holds more than a layer.
        Stage("export_sft", "export_hf", overrides=(f"export.run={config.sft.run}", *_SINGLE)),
        Stage("vold", "vold", gpus.vold or copy, progress=str(vold / "checkpoints" / "latest")),
        Stage("export_vold", "export_hf", overrides=(f"export.run={config.vold.run}", *_SINGLE)),
        Stage("evaluate", "evaluate", overrides=(
            *(f"~evaluate.models.{name}" for name in config.evaluate.models if name not in arms),
            *(f"evaluate.models.{name}={path}" for name, path in arms.items()), *_SINGLE,
        )),
        Stage("report", "report", overrides=(
            *(f"~report.runs.{name}" for name in config.report.runs if name not in arms),
            f"report.runs.sft={config.sft.run}", f"report.runs.{arm}={config.vold.run}", *_SINGLE,
        )),
    ]  # fmt: skip


def nodes(config: Config, tasks: int, gpus: int = 1) -> tuple[int, int]:
    """(nodes, tasks on each) for ``tasks`` ranks of ``gpus`` GPUs; ConfigError if they do not fill whole nodes."""
    each = max(1, config.cluster.gpus_per_node // gpus)
    if tasks <= each:
        return 1, tasks
    if tasks % each:
        raise ConfigError(
            "cluster.gpus", tasks, f"up to {each}, or a multiple of it (cluster.gpus_per_node)", "fill whole nodes"
        )
    return tasks // each, each


def script(
    config: Config, stage: Stage, overrides: list[str], *, folder: Path, here: Path, mark: str | None = None
) -> str:  # fmt: skip
    """The text of ``folder/<stage>.sbatch``.

    Args:
        overrides: the experiment's command line, which every stage gets; the stage's own come after it.
        folder: of the scripts, absolute.
        here: working directory of the job: relative paths of the configuration start there.
        mark: what the stage leaves in its ``.done`` when it has succeeded.
    """
    launch, (count, each) = config.cluster.launch, nodes(config, stage.tasks, stage.gpus)
    if launch.runtime != "bare" and launch.container is None:
        raise ConfigError("cluster.launch.container", None, "an image", f"runtime {launch.runtime} needs one")
    logs = here / config.outputs / config.name / "logs"
    options = {
        "job-name": f"{config.name}-{stage.name}", "account": launch.account, "partition": launch.partition,
        "qos": launch.qos, "constraint": launch.constraint, "nodes": count, "ntasks": stage.tasks, "ntasks-per-node": each,
        "cpus-per-task": launch.cpus_per_task, "mem": launch.memory,
        "gres": f"{launch.gres}:{each * stage.gpus}" if launch.gres is not None else None, "time": launch.time,
        "signal": f"B:USR1@{launch.signal_seconds}", "array": f"0-{stage.array - 1}" if stage.array else None,
        "chdir": here, "output": logs / f"{stage.name}-{'%A_%a' if stage.array else '%j'}.out", "open-mode": "append",
    }  # fmt: skip
    name = f"{stage.name}{'.${SLURM_ARRAY_TASK_ID}' if stage.array else ''}"
    settings = {
        **{key: _quoted(value) for key, value in site.variables(launch).items()},
        "VOLD_ROOT": _quoted(root()), "VOLD_LOGS": _quoted(logs),
        "VOLD_DONE": f'{_quoted(folder)}/"{name}.done"', MARK: mark, "VOLD_MAX_RESTARTS": launch.max_restarts,
        "VOLD_RUNTIME": launch.runtime, "VOLD_PROGRESS": _progress(here / stage.progress) if stage.progress else None,
        "VOLD_SETUP": _quoted("\n".join(launch.setup)) if launch.setup else None,
        "VOLD_PYTHON": _quoted(launch.python) if launch.python else None,
        "VOLD_CONTAINER": _quoted(launch.container) if launch.container else None,
        "VOLD_MOUNTS": _quoted(",".join(launch.mounts)) if launch.mounts else None,
        # its variables are the nodes' to fill in; the minutes are a net below those that the copy itself keeps to
        **({"VOLD_STAGE": _quoted(launch.stage), "VOLD_STAGE_MINUTES": math.ceil(launch.stage_minutes) + 2}
           if launch.stage and stage.name in site.STAGED else {}),
        **({"VOLD_NSYS": _quoted(here / profiling.folder_of(config, stage.name))}
           if config.profile.steps and config.profile.tool == "nsys" and stage.name in ("sft", "vold") else {}),
    }  # fmt: skip
    array = f"array of {stage.array} jobs of " if stage.array else ""
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH --{key}={_option(value)}" for key, value in options.items() if value is not None),
            "#SBATCH --requeue",
            *(f"#SBATCH {option}" for option in launch.options),
            f"# {config.name}: {stage.name}, {array}{count} x {each} task(s).  Written by vold_nemo from its configuration.",
            *(f"export {key}={value}" for key, value in settings.items() if value is not None),
            "# shellcheck source=/dev/null",
            f'source "${{VOLD_ROOT}}/slurm/stage.sbatch" {stage.recipe} \\',
            " \\\n".join(f"  {_argument(override)}" for override in (*overrides, *stage.overrides)),
            "",
        ]
    )


def folder_of(config: Config, here: Path) -> Path:
    """Of a chain's scripts, marks and records."""
    return (here / config.outputs / config.name / "slurm").resolve()


def wishes(config: Config, overrides: list[str], here: Path) -> list[Wish]:
    """Each stage of ``config`` with its script and the keys that it reads, its own overrides among them."""
    folder, found = folder_of(config, here), []
    for stage in stages(config):
        reads, how = keys(config, stage.recipe)
        reads["as the stage has it"] = [one for one in stage.overrides if not one.startswith("traces.shard=")]
        text = script(config, stage, overrides, folder=folder, here=here, mark=digest(reads))
        launch = [line for line in text.splitlines() if line.startswith(("#SBATCH ", "export ")) and f" {MARK}=" not in line]
        run = {"sft": config.sft.run, "vold": config.vold.run}.get(stage.name)
        found.append(Wish(stage, reads, how, launch, text, str((here / config.outputs / run).resolve()) if run else ""))
    return found


def write_chain(config: Config, overrides: list[str], here: Path) -> list[tuple[Stage, Path]]:
    """All scripts, and ``chain.tsv``: name, script, number of jobs in the array (0 = none)."""
    folder = folder_of(config, here)
    written = [(wish.stage, folder / f"{wish.stage.name}.sbatch", wish.script) for wish in wishes(config, overrides, here)]
    lines = [f"{stage.name}\t{path}\t{stage.array}\n" for stage, path, _ in written]
    with writing("outputs", folder):
        (here / config.outputs / config.name / "logs").mkdir(parents=True, exist_ok=True)
        for _, path, text in written:
            replace_text(path, text)
        replace_text(folder / "chain.tsv", "".join(lines))
    return [(stage, path) for stage, path, _ in written]


def write_script(config: Config, overrides: list[str], here: Path) -> Path:
    """``config.sbatch``: the script of ``plan.stage`` as the chain has it.  That is written, too: its logs and marks serve."""
    if config.sbatch is None:
        raise ConfigError("sbatch", None, "the name of a file", "give sbatch=FILE")
    scripts = {stage.name: path for stage, path in write_chain(config, without_planning(overrides), here)}
    file = here / config.sbatch
    text = scripts[config.plan.stage].read_text()
    with writing("sbatch", file):
        replace_text(file, text)
    return file


def without_planning(overrides: list[str]) -> list[str]:
    """A command line less what only the planner and the chain read: its script is the one that recipes/chain.py writes."""
    keys = [(override, override.lstrip("+").partition("=")[0]) for override in overrides]
    own = ("sbatch", "explain", "search", "strict")
    return [text for text, key in keys if key not in own and not key.startswith(("plan.", "chain."))]


def jobs(config: Config) -> list[str]:
    """What each stage asks of Slurm, a line a stage."""
    lines = []
    for stage in stages(config):
        count, each = nodes(config, stage.tasks, stage.gpus)
        array = f"array of {stage.array}, " if stage.array else ""
        gpus = f", {stage.gpus} GPUs a task" if stage.gpus > 1 else ""
        lines.append(f"{stage.name}: {array}{count} node(s) x {each} task(s){gpus}, {config.cluster.launch.time}")
    return lines


def refuse_inside_a_step() -> None:
    """A script is written by one process: from ``srun`` each rank would write its own over the others'."""
    if launched_world() is not None:
        raise ConfigError("launcher", launched_world(), "none", "run this by hand, on a login node")


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def _progress(file: Path) -> str:
    """One shell word; arithmetic on the array's index is left for the shell to do."""
    return f'{_quoted(file.parent)}/"{file.name}"' if "$((" in file.name else _quoted(file)


def _option(value: object) -> str:
    """Slurm takes double quotes in its comment lines; blanks need them, and what it would read as a quote or a comment."""
    text = str(value)
    return f'"{text}"' if any(character.isspace() or character in "'#" for character in text) else text


def _argument(override: str) -> str:
    """One shell word; the array's index alone is left for the shell to fill in."""
    index = "${SLURM_ARRAY_TASK_ID}"
    return f'"{override}"' if index in override else shlex.quote(override)
