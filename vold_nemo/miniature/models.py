"""The miniature models: real ``Qwen3ForCausalLM`` and ``Qwen2_5_VLForConditionalGeneration`` classes, tiny shapes.

:func:`save_checkpoint` writes what a model folder from the hub holds: config, safetensors, generation config, tokenizer with
its chat template and, for the student, ``preprocessor_config.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.miniature.renderer import CELL, PIXEL_MEAN, PIXEL_STD
from vold_nemo.miniature.tokenizer import (
    ENDOFTEXT,
    ID,
    IM_END,
    IMAGE_PAD,
    STUDENT_ROWS,
    TEACHER_ROWS,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    build_tokenizer,
)


@dataclass(frozen=True)
class TextShape:
    """Shape of a text model.  The default is the miniature's: 0.75 M parameters."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32  # Qwen2.5-VL has none of its own: hidden / heads
    ffn: int = 352
    tied: bool = True
    rope_theta: float = 1000.0  # sequences are short
    initializer_range: float = 0.07  # with the usual .02 everything learns many times slower


@dataclass(frozen=True)
class VisionShape:
    """Shape of a vision tower; patch 14 and merge 2 are fixed by the cards."""

    depth: int = 2
    hidden: int = 64
    heads: int = 4
    ffn: int = 128
    initializer_range: float = 0.02  # the text models' .07 is too much here: the tower hardly learns


def teacher_config(shape: TextShape = TextShape(), rows: int = TEACHER_ROWS):
    """``Qwen3Config``."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=rows,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=512,
        initializer_range=shape.initializer_range,
        tie_word_embeddings=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=ID[ENDOFTEXT],
        eos_token_id=ID[IM_END],
        pad_token_id=ID[ENDOFTEXT],
    )


def student_config(shape: TextShape = TextShape(), vision: VisionShape = VisionShape(), rows: int = STUDENT_ROWS):
    """``Qwen2_5_VLConfig``; the rotary pairs are split over time, height and width as 1/4 : 3/8 : 3/8, as in Qwen."""
    from transformers import Qwen2_5_VLConfig

    if shape.hidden != shape.heads * shape.head_dim:
        raise ValueError(f"Qwen2.5-VL: hidden {shape.hidden} is not heads {shape.heads} x head_dim {shape.head_dim}")
    pairs = shape.head_dim // 2
    side = 3 * pairs // 8
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": rows,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.ffn,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 512,
            "initializer_range": shape.initializer_range,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": shape.rope_theta,
                "mrope_section": [pairs - 2 * side, side, side],
            },
            "tie_word_embeddings": shape.tied,
            "bos_token_id": ID[ENDOFTEXT],
            "eos_token_id": ID[IM_END],
            "pad_token_id": ID[ENDOFTEXT],
        },
        vision_config={
            "depth": vision.depth,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.ffn,
            "num_heads": vision.heads,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [vision.depth - 1],
            "out_hidden_size": shape.hidden,
            "initializer_range": vision.initializer_range,
        },
        image_token_id=ID[IMAGE_PAD],
        video_token_id=ID[VIDEO_PAD],
        vision_start_token_id=ID[VISION_START],
        vision_end_token_id=ID[VISION_END],
        tie_word_embeddings=shape.tied,
        bos_token_id=ID[ENDOFTEXT],
        eos_token_id=ID[IM_END],
        pad_token_id=ID[ENDOFTEXT],
    )


def build_teacher(config, seed: int):
    """Random ``Qwen3ForCausalLM`` in fp32."""
    import torch
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config).float()


def build_student(config, seed: int):
    """Random ``Qwen2_5_VLForConditionalGeneration`` in fp32."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(config).float()


def save_checkpoint(model, path: str | Path) -> None:
    """Write ``model`` with its tokenizer (and image processor, if it sees) as an ordinary checkpoint folder."""
    from transformers import GenerationConfig

    path = Path(path)
    sees = model.config.model_type == "qwen2_5_vl"
    model.generation_config = GenerationConfig(
        bos_token_id=ID[ENDOFTEXT], pad_token_id=ID[ENDOFTEXT], eos_token_id=[ID[IM_END], ID[ENDOFTEXT]]
    )
    model.save_pretrained(path)
    build_tokenizer(qwen3=not sees).save_pretrained(path)
    if sees:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(), indent=2) + "\n")


def preprocessor_config() -> dict:
    """Settings of Qwen2-VL's image processor under which a card keeps its size: one image token a cell."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": CELL * CELL, "longest_edge": CELL * CELL * 8},
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
    }
