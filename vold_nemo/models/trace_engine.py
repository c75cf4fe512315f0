"""The teacher as the engine that writes traces, in the precision and on the device that the configuration gives it."""

from __future__ import annotations

from vold_nemo.config import Config


def trace_engine(config: Config, local_rank: int):
    """The engine of ``traces.engine``."""
    return on_vllm(config, local_rank) if config.traces.engine == "vllm" else on_transformers(config, local_rank)


def on_transformers(config: Config, local_rank: int):
    """The rollout engine with the teacher in it."""
    import torch

    from vold_nemo.data.templates import eos_ids, load_tokenizer
    from vold_nemo.megatron.device import pick_training_device
    from vold_nemo.planning.decoding import trace_precision
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(
        config.teacher.path,
        device=pick_training_device(config.device, local_rank),
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[trace_precision(config)],
        batch=config.traces.batch,
        stop_ids=eos_ids(config.teacher.path, load_tokenizer(config.teacher.path, config.teacher.revision)),
    )


def on_vllm(config: Config, local_rank: int):
    """vLLM with the teacher in it, on this task's GPUs."""
    from vold_nemo.data.templates import eos_ids, load_tokenizer
    from vold_nemo.megatron import device as devices
    from vold_nemo.planning.decoding import trace_precision
    from vold_nemo.rollout.vllm_teacher import VLLMTeacher

    return VLLMTeacher(
        config.teacher.path, config.traces, dtype={"fp32": "float32", "bf16": "bfloat16"}[trace_precision(config)],
        stop_ids=eos_ids(config.teacher.path, load_tokenizer(config.teacher.path, config.teacher.revision)),
        local_rank=local_rank, visible=devices.visible() if config.device != "cpu" else [],
    )  # fmt: skip
