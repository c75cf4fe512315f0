"""What worker ranks do with a whole FP8 teacher: the probe, and broken weights under it."""

from __future__ import annotations

from pathlib import Path

OPTIONS = ("teacher.precision=fp8", "teacher.fp8.backend=emulated")
PROMPTS = [[12 + (7 * i + j) % 40 for j in range(9 + i)] for i in range(6)]


def teacher_of(config, layout):
    from vold_nemo.megatron import architecture
    from vold_nemo.models.teacher import Teacher

    rows = architecture.padded_vocabulary([architecture.read(config.teacher.path).vocabulary], layout.tensor)
    return Teacher(config.teacher, layout, padded_vocabulary=rows, student_precision=config.precision)


def probed(folder: Path, broken: str | None, *overrides: str) -> tuple[str, str, int]:
    """("passed" or the key of the ConfigError, what was said, tokens counted as scored)."""
    import torch

    from tests.models.stages import configuration, layout_of
    from vold_nemo.config import ConfigError
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.chunks import chunks_of

    config = configuration(folder, *OPTIONS, *overrides)
    layout = layout_of(config)
    try:
        teacher = teacher_of(config, layout)
        if broken is not None:
            with torch.no_grad():
                for layer in teacher.model.decoder.layers:
                    scale = layer.mlp.linear_fc1.weight_scale
                    scale.copy_(torch.full_like(scale, torch.nan) if broken == "nan" else scale * 8)
        layers = [id(layer) for chunk in chunks_of(teacher.model) for layer in chunk.decoder.layers]
        try:
            said = "passed", teacher.probe(PROMPTS), teacher.tokens_scored
        except ConfigError as error:
            said = error.key, str(error), teacher.tokens_scored
        assert [id(layer) for chunk in chunks_of(teacher.model) for layer in chunk.decoder.layers] == layers  # FP8 again
        return said
    finally:
        parallel.destroy()


def drifted(folder: Path, *overrides: str) -> dict:
    """recipes/teacher_drift.py's numbers on the tiny world's traces."""
    from omegaconf import OmegaConf

    from tests.models.stages import configuration, layout_of
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.data.templates import load_tokenizer
    from vold_nemo.data.traces import load_traces
    from vold_nemo.megatron import parallel, weights
    from vold_nemo.megatron.adoption import agree
    from vold_nemo.models import teacher_drift
    from vold_nemo.models.teachers import Teachers
    from vold_nemo.models.vold import MegatronVOLDModel

    config = teacher_drift.distillation_only(configuration(folder, *OPTIONS, "objective=vold_reverse", *overrides))
    layout = layout_of(config)
    try:
        model, tokenizer = MegatronVOLDModel(OmegaConf.structured(config)), load_tokenizer(config.vold.start)
        fp8, bf16 = teacher_of(config, layout), teacher_of(configuration(folder, "teacher.precision=bf16"), layout)
        _, contract = agree(config, tokenizer, model.architecture.vocabulary, [config.teacher], padded=model.padded_vocabulary)
        examples, _ = load_traces(config.traces.path, tokenizer, max_length=64, rejected=Rejected(None, 0.0), end_ids=(1,))
        step = teacher_drift.as_step(examples[:6])
        model.load_pretrained(weights.Files(config.vold.start))
        model.prepare_for_training()
        model.attach_teachers(Teachers(bf16), contract)
        drift = teacher_drift.measure(model, fp8, bf16, step)
        return teacher_drift.summary(drift, step, [e.name for e in examples], tokenizer, 3)
    finally:
        parallel.destroy()
