"""Know before the queue whether a configuration is right, whether it fits, and how long it takes; no device, in seconds.

    python recipes/plan.py experiment=paper_3b cluster=a100_80
    python recipes/plan.py experiment=paper_3b search=true            all layouts ranked, and the fewest GPUs that fit
    python recipes/plan.py experiment=paper_3b explain=true           every assumption and formula
    python recipes/plan.py experiment=qwen2_5_vl_7b_from_32b_a100 strict=true
    python recipes/plan.py experiment=paper_3b cluster=my_site sbatch=vold.sbatch     and the script that submits stage 2

Every finding is named at once, with how to mend it.  Checkpoints and data that are not fetched yet and features that are
not built yet are warnings (errors with ``strict=true``): shapes of published models are known without them.  Writes
``plan.json`` and ``plan.html`` under ``plan.path``, and with ``sbatch=FILE`` the Slurm scripts of a plan that fits.  Exit
code 2: a finding, or a plan that does not fit, with the three cheapest changes that make it fit.  All times and GPU memory
figures are planned, not measured.
"""

import sys
from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(alone=True, reads=(
    "plan", "strict", "explain", "search", "sbatch", "cluster", "parallel", "student", "teacher", "teachers",
    "tokenizer", "objective", "rollout", "data", "traces", "sft", "vold", "checkpoint", "export", "evaluate",
    "report", "rehearse", "profile", "device", "precision", "evidence",
))  # fmt: skip
def main(config: Config) -> None:
    from vold_nemo.config.compose import HydraArguments
    from vold_nemo.pages.plan import write
    from vold_nemo.planning import launch, text
    from vold_nemo.planning.example import example
    from vold_nemo.planning.plan import STAGES, layout_findings, make_plan, models_of, stage_gpus, with_rehearsals
    from vold_nemo.planning.resolved import describe
    from vold_nemo.planning.tokens import contract
    from vold_nemo.planning.validity import Unbuilt, pending
    from vold_nemo.rehearsal import kept

    warnings = pending(config)
    for error in warnings:
        print(f"warning: {error}", file=sys.stderr)
    if any(isinstance(error, Unbuilt) for error in warnings):
        print("no plan of memory and time: this configuration needs what is not built yet (see the warnings)")
        return
    models = models_of(config)
    wrong = {str(e): e for stage in STAGES for e in layout_findings(config, models, stage, stage_gpus(config, stage))}
    if wrong:
        raise ExceptionGroup("layout", list(wrong.values()))
    plan = with_rehearsals(make_plan(config, models), config, models, kept.of(config))
    lines = [describe(config, "plan"), *contract(config), "", *text.memory_table(plan)]
    lines += [*text.host_table(config, models), "", *text.time_table(plan, config)]
    lines += ["", *text.start_table(config, models, plan)]
    lines += ["", *text.saving_table(config, models), "", *text.holding(config, models)]
    lines += ["", "jobs (slurm/pipeline.sh submits them, sbatch=FILE writes their scripts)"]
    lines += [f"  {job}" for job in launch.jobs(config)]
    lines += example(config, "plan")
    if config.search:
        for stage in plan.stages:
            lines += ["", *text.ranking(config, models, stage)]
        lines += ["", "recomputation and offload stand where a layout does not fit without; all stages share one parallel.*"]
    if config.explain:
        lines += ["", *text.assumptions(config)]
    lines += ["", f"evidence: {config.evidence}, as conf/experiment/ has it", kept.said(config)]
    print("\n".join(lines))
    print(f"\nwritten: {write(config, plan)}")
    if not plan.fits:
        raise text.refusal(config, models, plan)
    if config.sbatch is not None:
        launch.refuse_inside_a_step()
        file = launch.write_script(config, HydraArguments.parse(sys.argv[1:]).argv(), Path.cwd())
        print(f"written: {file} (sbatch {file.name}); the whole chain: slurm/pipeline.sh")


if __name__ == "__main__":
    main()
