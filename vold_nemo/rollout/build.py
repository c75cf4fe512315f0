"""The rollout engine that the configuration names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from vold_nemo.config import Config
from vold_nemo.rollout.engine import RolloutEngine


def build_engine(config: Config, path: str | Path, device: torch.device, stop_ids: Iterable[int]) -> RolloutEngine:
    """``rollout.engine`` with the checkpoint at ``path``, in the trainer's precision.  Collective over the world (vllm)."""
    rollout, dtype = config.rollout, torch.float32 if config.precision == "fp32" else torch.bfloat16
    if rollout.engine == "vllm":
        from vold_nemo.rollout.vllm_engine import VLLMEngine

        return VLLMEngine(path, device=device, dtype=dtype, settings=rollout.vllm, batch=rollout.batch, stop_ids=stop_ids)
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(path, device=device, dtype=dtype, batch=rollout.batch, stop_ids=stop_ids)
