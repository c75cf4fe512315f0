"""Does an exported checkpoint, read by transformers alone, say what the trained model says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vold_nemo.config import ConfigError
from vold_nemo.megatron import tensors

# Largest |log-prob difference| in fp32: rounding of two implementations, several layers deep.  In bf16 two right ones differ by
# more than a tenth of a nat where an id is improbable, and a small tensor that is wrong would pass.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Parity:
    """Over all tokens and ids of a probe."""

    max: float
    mean: float
    tokens: int


@torch.no_grad()
def transformers_logprobs(path: str | Path, ids: Tensor) -> Tensor:
    """log-probs [b, s, V] of the checkpoint at ``path``, computed in float32 whatever its weights' type."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    vision = hasattr(AutoConfig.from_pretrained(str(path)), "vision_config")
    auto = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model = auto.from_pretrained(str(path), dtype=torch.float32, use_safetensors=True).eval().to(ids.device)
    return torch.log_softmax(model(input_ids=ids).logits.float(), -1)


@torch.no_grad()
def megatron_logprobs(model, ids: Tensor, rows: int) -> Tensor:
    """log-probs [b, s, V] over the first ``rows`` ids, float32; ``model`` is whole on this rank (TP1, PP1)."""
    from vold_nemo.megatron.build import lm_head_weight

    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    hidden = model(ids, positions, None).transpose(0, 1)  # [s, b, H] -> [b, s, H]
    return torch.log_softmax((hidden @ lm_head_weight(model)[:rows].t()).float(), -1)


def verify(model, rows: int, path: str | Path, *, device: torch.device) -> Parity:
    """Compare both on random ids in float32, which every bf16 weight is exactly; ConfigError above the tolerance.

    ``model`` is given away: its weights are rounded to the type that the checkpoint has them in, and then widened.
    """
    kinds = {entry.dtype for entry in tensors.index(Path(path)).values()}
    for parameter in model.parameters():
        stored = parameter.data.bfloat16() if "BF16" in kinds else parameter.data
        parameter.data = stored.float()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, rows, (2, min(48, 4 * rows)), generator=generator).to(device)
    vision_ids = [id_ for id_ in _vision_ids(path) if id_ < rows]
    ids[torch.isin(ids, torch.tensor(vision_ids, device=device, dtype=ids.dtype))] = 0  # would ask for an image
    gap = (megatron_logprobs(model, ids, rows) - transformers_logprobs(path, ids)).abs()
    found = Parity(float(gap.max()), float(gap.mean()), ids.numel())
    if not found.max <= TOLERANCE:
        raise ConfigError("export.verify", f"largest log-prob difference {found.max:.3g}", f"at most {TOLERANCE:g}",
                          f"do not use {path}: export with the student's own source checkpoint")  # fmt: skip
    return found


def _vision_ids(path: str | Path) -> list[int]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(path))
    names = ("image_token_id", "video_token_id", "vision_start_token_id")
    return [value for name in names if isinstance(value := getattr(config, name, None), int)]
