"""An arm of `benchmarks/peers.py`: our stage 2, as its recipe runs it, for a few steps.  Settings: one JSON argument."""

from __future__ import annotations

import json
import sys

from benchmarks.process import Record

OBJECTIVES = {
    "grpo": ["objective=grpo"],
    "distillation": ["objective=distillation_only", "objective.kl.estimator=reverse"],
    "vold": ["objective=vold_reverse"],
}


def main(s: dict) -> None:
    import datasets  # noqa: F401  what TRL's arms stand on before they begin, and ours
    import torch
    import transformers

    from vold_nemo.command.quiet import quiet, quiet_nemo

    quiet()
    quiet_nemo()
    from vold_nemo.config.compose import compose
    from vold_nemo.megatron import cpu
    from vold_nemo.models import vold
    from vold_nemo.models.clock import PhaseClock
    from vold_nemo.models.inputs import VOLDInputs
    from vold_nemo.models.stages import train_vold

    torch.set_num_threads(s["threads"])
    cpu.enable()
    record = Record()
    config = compose([
        "experiment=miniature", *OBJECTIVES[s["arm"]], "parallel=single", f"outputs={s['folder']}/{s['arm']}_{s['seed']}",
        f"miniature.path={s['world']}", f"vold.start={s['student']}", f"seed={s['seed']}", f"vold.steps={s['steps']}",
        f"vold.prompts_per_step={s['prompts']}", f"rollout.samples_per_prompt={s['samples']}",
        f"rollout.max_tokens={s['max_tokens']}", "vold.updates_per_step=1",
        f"vold.micro_batch_tokens={s['micro_batch_tokens']}", "vold.optimizer.learning_rate=1e-4",
        "vold.validation.every=0", "vold.rollout_log_every=0", "checkpoint.every=0", "logging.tensorboard=false",
    ])  # fmt: skip

    class Processor(PhaseClock):
        """The same phases in processor seconds."""

        def _now(self) -> float:
            from benchmarks.process import seconds

            return seconds()

    inner = vold.MegatronVOLDModel.train_step

    def train_step(self, number: int):
        metrics = inner(self, number)
        record.phases = dict(metrics["seconds"])
        record.step(metrics["response_tokens"]["mean"], metrics["reward_mean"])
        return metrics

    vold.PhaseClock, vold.MegatronVOLDModel.train_step = Processor, train_step
    train_vold(config, VOLDInputs(config))
    record.write(s["out"], f"ours: torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
