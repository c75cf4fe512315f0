"""Targets and the arms they need.

An arm is a trained model of one experiment: ``<outputs>/<name>/<arm>/hf``.  What makes it is a list of recipes with
overrides of the experiment, so that the same table serves both scales; ``{outputs}`` and ``{name}`` are filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vold_nemo.config import ConfigError
from vold_nemo.pages.reproduce import paper

EXPERIMENTS = {"miniature": "miniature", "paper": "paper_3b"}


@dataclass(frozen=True)
class Arm:
    """``after`` names the arm whose export it starts from; ``recipes`` are (recipe, overrides) before its export.

    ``name`` overrides the experiment's name: an arm with a world or a teacher of its own lives in a folder of its own.
    """

    name: str
    title: str
    recipes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    after: str | None = None
    suffix: str = ""  # behind the experiment's name
    miniature: tuple[str, ...] = ()  # overrides at one of the scales only
    paper: tuple[str, ...] = ()
    experiment: dict[str, str] = field(default_factory=dict)  # scale: experiment, where it is not the target's


def _stage2(name: str, title: str, *overrides: str, after: str = "sft", **more) -> Arm:
    start = f"vold.start={{outputs}}/{{name}}/{after}/hf"
    return Arm(name, title, (("vold", (f"objective.arm={name}", start, *overrides)),), after=after, **more)


def _sft(name: str, title: str, *overrides: str, **more) -> Arm:
    return Arm(name, title, (("sft", (f"sft.run={{name}}/{name}", *overrides)),), **more)


_GRPO = dict(experiment={"miniature": "miniature_grpo", "paper": "paper_3b"}, paper=("objective=grpo",))
_OTHER = "traces.path={outputs}/{name}/traces_other/traces.jsonl"
LENGTHS = {"miniature": (5, 12, 25), "paper": (500, 1000, 2000, 3000, 4000)}
TEACHERS = {"4b": 40, "8b": 140, "14b": 240}  # in the miniature: steps of the teacher's own training

_LENGTHS = (*LENGTHS["miniature"], *LENGTHS["paper"])


def _taught_by(size: str, steps: int) -> Arm:
    return Arm(
        f"teacher_{size}", f"VOLD taught by a teacher of {steps} steps ({size.upper()} in the paper)",
        (("generate_traces", ()), ("sft", ()), ("export_hf", ("export.run={name}/sft",)),
         ("vold", ("objective.arm=sft_vold",))), suffix=f"_teacher_{size}",
        experiment={"paper": f"teacher_size_{size}", "miniature": "miniature"},
        miniature=(f"miniature.path={{outputs}}/miniature_world_{steps}", f"miniature.teacher_steps={steps}"),
    )  # fmt: skip


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("base", "Student before any training"),
        _sft("sft", "SFT on the teacher's traces"),
        _stage2("sft_grpo", "SFT, then GRPO", **_GRPO),
        _stage2("sft_vold", "SFT, then VOLD"),
        _stage2("sft_vold_unmasked", "SFT, then VOLD without the reward mask", "objective.kl.mask=none"),
        _stage2("sft_gspo", "SFT, then GSPO", "objective.policy.loss=gspo", **_GRPO),
        _stage2("sft_gspo_vold", "SFT, then VOLD with GSPO's ratio", "objective.policy.loss=gspo"),
        _sft("sft_other", "SFT on another model's traces", _OTHER),
        _stage2("sft_other_grpo", "SFT on another's traces, GRPO", after="sft_other", **_GRPO),
        _stage2("sft_other_vold", "SFT on another's traces, VOLD", after="sft_other"),
        *(_sft(f"sft_{n}", f"SFT, {n} steps", f"sft.steps={n}") for n in _LENGTHS),
        *(_stage2(f"sft_{n}_grpo", f"SFT of {n} steps, GRPO", after=f"sft_{n}", **_GRPO) for n in _LENGTHS),
        *(_stage2(f"sft_{n}_vold", f"SFT of {n} steps, VOLD", after=f"sft_{n}") for n in _LENGTHS),
        *(_taught_by(size, steps) for size, steps in TEACHERS.items()),
    )
}


@dataclass(frozen=True)
class Target:
    """``arms`` by scale; ``sets`` are benchmarks at paper scale (the miniature asks its own text and image questions)."""

    name: str
    title: str
    claim: str
    arms: dict[str, tuple[str, ...]]
    kind: str = "table"  # table | curves | bars | lengths
    sets: tuple[str, ...] = ()
    paper: dict[str, dict[str, float]] | dict[str, float] = field(default_factory=dict)
    note: dict[str, str] = field(default_factory=dict)  # scale: what is different there


def _both(*arms: str) -> dict[str, tuple[str, ...]]:
    return {"miniature": arms, "paper": arms}


def _lengths(scale: str) -> tuple[str, ...]:
    return tuple(f"sft_{n}{end}" for n in LENGTHS[scale] for end in ("", "_grpo", "_vold"))


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("table1", "Main results", "VOLD is better than text SFT and GRPO, on image benchmarks that neither trained on.",
               _both("base", "sft_grpo", "sft_vold"), sets=paper.SETS, paper=paper.TABLE1,
               note={"paper": "The paper's middle row is X-Reasoner-3B as its authors reproduced it: text SFT and GRPO."}),
        Target("table2", "Whose traces", "Distillation helps only if the SFT traces come from the same teacher.",
               _both("sft_other_grpo", "sft_other_vold", "sft_grpo", "sft_vold"), sets=("mathvision", "logicvista"),
               paper=paper.TABLE2, note={
                   "miniature": "The other model is a teacher of another seed: make its world with "
                   "recipes/prepare_miniature.py miniature.seed=1 miniature.path=OTHER, and its traces with "
                   "recipes/generate_traces.py teacher.path=OTHER/teacher "
                   "traces.path=<outputs>/<name>/traces_other/traces.jsonl.",
                   "paper": "The other traces are Mixture-of-Thoughts' own answers, as lines "
                   "{id, sample, messages, response, finish} at <outputs>/<name>/traces_other/traces.jsonl.",
               }),
        Target("table3", "Components", "Each stage adds: SFT, then GRPO, then the teacher.",
               _both("sft", "sft_grpo", "sft_vold"), sets=paper.THREE, paper=paper.TABLE3),
        Target("table5", "Size of the teacher", "A 4B teacher helps less than an 8B one; 14B adds little more.",
               _both("teacher_4b", "teacher_8b", "teacher_14b"), sets=paper.THREE,
               note={"miniature": "Teachers of one size, trained for 40, 140 and 240 steps, stand in for three sizes."}),
        Target("table6", "Perception and reasoning", "Reasoning rises and perception hardly falls.",
               _both("base", "sft_vold"), sets=("mme",), paper=paper.TABLE6,
               note={"miniature": "The miniature has no MME: its text questions need no reading of "
                     "images, its image questions are the same calculations as pictures."}),
        Target("figure3", "While training", "Validation on images rises with the reward on text.",
               _both("sft_grpo", "sft_vold"), kind="curves"),
        Target("figure4", "Length of the cold start",
               "After a short SFT distillation gives nothing; the gain levels off near 3,000 steps.",
               {scale: _lengths(scale) for scale in LENGTHS}, kind="lengths", sets=paper.THREE),
        Target("figure5", "The reward mask", "Distillation raises the final reward, and more so with the mask.",
               _both("sft_grpo", "sft_vold_unmasked", "sft_vold"), kind="bars", paper=paper.FIGURE5),
        Target("figure6", "GSPO", "Distillation helps GSPO as it helps GRPO.",
               _both("sft_gspo", "sft_gspo_vold"), kind="curves"),
    )
}  # fmt: skip


def target(name: str) -> Target:
    if name not in TARGETS:
        raise ConfigError("reproduce.target", name, " | ".join(TARGETS), "name one of these tables and figures")
    return TARGETS[name]


def with_experiment(arguments: list[str]) -> list[str]:
    """The command line with the scale's experiment, if it names none."""
    if any(argument.startswith("experiment=") for argument in arguments):
        return arguments
    scale = next((a.partition("=")[2] for a in arguments if a.startswith("reproduce.scale=")), "miniature")
    return [f"experiment={EXPERIMENTS[scale]}", *arguments] if scale in EXPERIMENTS else arguments
