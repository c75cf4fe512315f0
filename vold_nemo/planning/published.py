"""Shapes of published checkpoints, so that a plan needs none on this disk.

The values are those of :data:`vold_nemo.megatron.architecture.PUBLISHED`, and so are the architectures that
:func:`vold_nemo.megatron.architecture.read` finds; a checkpoint that does lie here is read instead.
"""

from __future__ import annotations

from pathlib import Path

from vold_nemo.config import ConfigError
from vold_nemo.config.json_files import read_object
from vold_nemo.megatron.architecture import published_config
from vold_nemo.megatron.hf_config import vision_sizes


def is_published(path: str) -> bool:
    """Whether ``path`` is the hub id of a known model and not a folder here."""
    return published_config(path) is not None


def config_of(path: str) -> dict | None:
    """``config.json`` of a folder or of a published hub id; None if it is neither."""
    file = Path(path) / "config.json"
    return published_config(path) or (read_object(file, "download the checkpoint again") if file.is_file() else None)


def vision_parameters(path: str) -> int:
    """Parameters of the vision tower and projector, which only the rollout engine holds; 0 for a text-only model.

    Raises:
        ConfigError: a vision tower of another family.
    """
    config = config_of(path) or {}
    if config.get("vision_config") is None:
        return 0
    families = {"qwen2_5_vl": (_qwen2_5_vision, _SIZES), "qwen3_vl": (_qwen3_vision, (*_SIZES, *_QWEN3_SIZES))}
    family = config.get("model_type")
    if not isinstance(family, str) or family not in families:
        raise ConfigError(f"{path}: model_type", family, " | ".join(families), "use a student of these families")
    count, sizes = families[family]
    return count(vision_sizes(config, path, sizes))


_SIZES = ("hidden_size", "intermediate_size", "out_hidden_size", "depth", "temporal_patch_size", "patch_size")
_QWEN3_SIZES = ("num_position_embeddings", "deepstack_visual_indexes")


def _qwen2_5_vision(vision: dict[str, int]) -> int:
    """transformers' ``modeling_qwen2_5_vl.py``: patch embedding without a bias, blocks of RMS norms and a gated feed-forward,

    a merger that norms and maps 4w -> 4w -> o, with width w and output o.
    """
    width, ffn, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    pixels = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    block = 4 * width * width + 4 * width + 3 * width * ffn + 2 * ffn + width + 2 * width
    return width * pixels + vision["depth"] * block + width + _merger(4 * width, out)


def _qwen3_vision(vision: dict[str, int]) -> int:
    """transformers' ``modeling_qwen3_vl.py``: learned positions, layer norms, a plain feed-forward, one merger for the output

    and one for each deep-stacked layer.
    """
    width, ffn, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    pixels = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    block = 4 * width * width + 4 * width + 2 * width * ffn + ffn + width + 4 * width
    stem = width * pixels + width + vision["num_position_embeddings"] * width
    deep = vision["deepstack_visual_indexes"] * (2 * 4 * width + _merger(4 * width, out))
    return stem + vision["depth"] * block + 2 * width + _merger(4 * width, out) + deep


def _merger(merged: int, out: int) -> int:
    return merged * merged + merged + merged * out + out
