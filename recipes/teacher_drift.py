"""Is FP8 good enough for this teacher?  Score given traces with the teacher in FP8 and in bf16, and compare.

    torchrun --nproc-per-node 8 recipes/teacher_drift.py experiment=paper_3b_h100 teacher.precision=fp8
    python recipes/teacher_drift.py experiment=miniature teacher.precision=fp8 teacher.fp8.backend=emulated

Reads ``drift.traces`` (written by recipes/generate_traces.py), the teacher twice, and the student ``vold.start``, in the
layout of stage 2.  Writes ``drift.json`` and ``drift.html`` under ``drift.path``: KL(bf16 || FP8) of the response tokens,
agreement of first choices, the worst tokens and layers, and the cosine of the student's two distillation gradients.
"""

import dataclasses

from vold_nemo.command import recipe
from vold_nemo.config import Config, ConfigError


@recipe(training=True, reads=(
    "drift", "teacher", "teachers", "student", "tokenizer", "parallel", "objective", "vold", "rollout", "data",
    "limits", "seed", "device", "precision",
))  # fmt: skip
def main(config: Config) -> None:
    from omegaconf import OmegaConf

    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import eos_ids, load_tokenizer
    from vold_nemo.data.traces import load_traces
    from vold_nemo.megatron import parallel, weights
    from vold_nemo.megatron.adoption import agree
    from vold_nemo.models import teacher_drift
    from vold_nemo.models.teacher import Teacher
    from vold_nemo.models.teachers import Teachers
    from vold_nemo.models.vold import MegatronVOLDModel
    from vold_nemo.pages import drift as page

    config = teacher_drift.distillation_only(config)
    tokenizer = load_tokenizer(config.vold.start)
    layout = parallel.initialize_from(config)
    model = MegatronVOLDModel(OmegaConf.structured(config))
    both = dict(padded_vocabulary=model.padded_vocabulary, student_precision=config.precision)
    fp8 = Teacher(config.teacher, layout, **both)
    if fp8.precision.recipe is None:
        raise ConfigError("teacher.precision", fp8.precision.describe(), "a teacher in FP8",
                          "set teacher.precision=fp8, without FP8 hardware with teacher.fp8.backend=emulated")
    plain = dataclasses.replace(config.teacher, precision="bf16", fp8=dataclasses.replace(config.teacher.fp8, backend="te"))
    bf16 = Teacher(plain, layout, **both)
    adopted, contract = agree(
        config, tokenizer, model.architecture.vocabulary, [config.teacher], padded=model.padded_vocabulary
    )
    examples, counts = load_traces(
        config.drift.traces, tokenizer, max_length=config.drift.max_length,
        rejected=Rejected(None, config.data.max_rejected_share), end_ids=eos_ids(config.vold.start, tokenizer),
        shared=contract.shared.tolist(),
    )  # fmt: skip
    step = teacher_drift.as_step(examples[: config.drift.limit])
    model.load_pretrained(weights.Files(config.vold.start), adopted)
    model.prepare_for_training()
    model.attach_teachers(Teachers(fp8), contract)  # whose matrix units ask for padding; each scores in turn
    drift = teacher_drift.measure(model, fp8, bf16, step)
    if layout.rank == 0:
        names = [example.name for example in examples]
        found = teacher_drift.summary(drift, step, names, tokenizer, config.drift.worst)
        found |= {
            "teacher": config.teacher.path, "precision": fp8.precision.describe(), "source": config.drift.traces,
            "layout": f"tensor {layout.tensor}, pipeline {layout.pipeline}, context {layout.context}, on {layout.device.type}",
            "bytes": {"fp8": fp8.memory_bytes()["weights"], "bf16": bf16.memory_bytes()["weights"]},
        }  # fmt: skip
        print(counts.describe())
        print(
            f"{fp8.precision.describe()}\n{found['tokens']} tokens: mean KL(bf16 || fp8) {found['kl_mean']:.4g} nats, first "
            f"choice the same in {found['same_first_choice']:.2%}, gradient cosine {found['gradient_cosine']:.5f}\n"
            f"written: {page.write(config.drift.path, found)}"
        )
    parallel.destroy()


if __name__ == "__main__":
    main()
