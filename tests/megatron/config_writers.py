"""One model's ``config.json`` as generations of tools write it.  Forms seen in files that those versions wrote."""

from __future__ import annotations

import copy
from collections.abc import Callable

FLAT_IN_4 = ("qwen2_5_vl",)  # language keys at the top level, before transformers 4.52
Config = dict


def text_of(config: Config) -> Config:
    return config.get("text_config", config)


def transformers_5(config: Config) -> Config:
    """What the installed version saved."""
    return config


def transformers_5_0(config: Config) -> Config:
    """Experts under their older name; no tie flag inside an untied Qwen3-VL-MoE; the older kind beside the newer."""
    text = text_of(config)
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    if config["model_type"] == "qwen3_vl_moe":
        text.pop("tie_word_embeddings", None)
    if config["model_type"] == "qwen2_5_vl":
        text["rope_parameters"] |= {"type": "mrope"}
    return config


def transformers_4_57(config: Config) -> Config:
    """``rope_theta`` and ``rope_scaling``; Qwen2.5-VL's tie flag only where it is not the base class's default, true."""
    text, kind = text_of(transformers_5_0(config)), config["model_type"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = (rope | {"rope_type": "default", "type": "default"}) if "mrope_section" in rope else None
    if kind == "qwen2_5_vl":
        tied = config.pop("tie_word_embeddings")
        text.pop("tie_word_embeddings", None)
        (text if tied else config)["tie_word_embeddings"] = tied
    return config


def transformers_4_51(config: Config) -> Config:
    """Qwen2.5-VL flat, with the kind of its rotary embedding as it was trained."""
    config = transformers_4_57(config)
    text_of(config).pop("layer_types", None)
    if config["model_type"] in FLAT_IN_4:
        text = config.pop("text_config")
        text.pop("model_type")
        section = text["rope_scaling"]["mrope_section"]
        config = text | config | {"rope_scaling": {"type": "mrope", "mrope_section": section}}
        config["torch_dtype"] = "float32"
    return config


def flat_beside_nested(config: Config) -> Config:
    """transformers 4.57 on an older Qwen2.5-VL: the old keys stay where they were; the inner ones count."""
    config = transformers_4_57(config)
    if "text_config" in config:
        config |= {"hidden_size": 8192, "rope_theta": 5.0, "num_attention_heads": 64, "rope_scaling": None}
    return config


def both_spellings(config: Config) -> Config:
    """For tools of either generation: everything twice, and equal."""
    text = text_of(config)
    text["rope_theta"] = text["rope_parameters"]["rope_theta"]
    text["rope_scaling"] = dict(text["rope_parameters"])
    if "num_local_experts" in text:
        text["num_experts"] = text["num_local_experts"]
    return config


def null_for_default(config: Config) -> Config:
    """By hand: nulls where the class has a default (its strict types allow only some of them)."""
    text = text_of(config)
    rope = text["rope_parameters"]
    rope.pop("rope_theta")
    text["rope_scaling"] = None
    if config["model_type"] == "qwen3_vl_moe":
        text["head_dim"] = None
    return config


def without_defaults(config: Config) -> Config:
    """By hand: only what says which weights there are; each class fills in the rest."""
    kept = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "num_local_experts", "moe_intermediate_size", "num_experts_per_tok")  # fmt: skip
    text = text_of(config)
    rope = text["rope_parameters"]
    small = {key: text[key] for key in kept if key in text}
    if "head_dim" in text and config["model_type"] != "qwen3_vl_moe":
        small["head_dim"] = text["head_dim"]  # a default of 128, which these small models do not have
    if "mrope_section" in rope:  # transformers' own code needs it
        small["rope_parameters"] = {"mrope_section": rope["mrope_section"], "rope_type": "default"}
    if text is config:
        return small | {key: config[key] for key in ("tie_word_embeddings",) if config.get(key)}
    outer = {key: value for key, value in config.items() if key.endswith("_id") or key in ("model_type", "vision_config")}
    if config["tie_word_embeddings"]:
        outer["tie_word_embeddings"] = True
    return outer | {"text_config": small}


WRITERS: dict[str, Callable[[Config], Config]] = {
    writer.__name__: writer
    for writer in (transformers_5, transformers_5_0, transformers_4_57, transformers_4_51, flat_beside_nested, both_spellings,
                   null_for_default, without_defaults)
}  # fmt: skip


def written(config: Config, writer: str) -> Config:
    """``config``, saved by the installed transformers, as ``writer`` writes it."""
    return WRITERS[writer](copy.deepcopy(config))
