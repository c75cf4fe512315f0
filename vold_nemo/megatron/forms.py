"""Forms of checkpoint folders whose weights are not the model's own numbers: refused by name, with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError
from vold_nemo.config.json_files import read_object

# What tools write beside the weights that they have packed; `quantization_config` in config.json is transformers' form.
QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
ADAPTER = "adapter_config.json"
_ORIGINAL = "give the checkpoint that it was made from, or dequantise it into safetensors of bf16"


def refuse_adapter(folder: Path) -> None:
    """:raises ConfigError: for a folder with an adapter, whose weights transformers would add to the model's."""
    if (folder / ADAPTER).is_file():
        raise ConfigError(
            str(folder), f"{ADAPTER}: an adapter", "a whole model",
            "merge it into its base first (peft: model.merge_and_unload().save_pretrained(FOLDER)) and give that folder; if "
            "these are merged weights already, move adapter_config.json and adapter_model.* away",
        )  # fmt: skip


def refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    """:raises ConfigError: for a checkpoint whose weights are packed or scaled; ``config`` is its parsed config.json."""
    for part in (config, config.get("text_config")):
        said = part.get("quantization_config") if isinstance(part, dict) else None
        if said is not None:
            how = said.get("quant_method", "?") if isinstance(said, dict) else said
            key = f"{folder / 'config.json'}: quantization_config"
            raise ConfigError(key, str(how)[:200], "an unquantised checkpoint", _ORIGINAL)
    for name in QUANTISED:
        if (folder / name).is_file():
            mend = f"{_ORIGINAL}; if the weights are not quantised, move {name} away"
            raise ConfigError(str(folder), name, "an unquantised checkpoint", mend)


def whole_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder with a whole model in its own numbers.

    :raises ConfigError: an adapter, a quantised checkpoint, no such file or a broken one.
    """
    refuse_adapter(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError("checkpoint", str(folder), "a folder with config.json", "give a Hugging Face checkpoint folder")
    config = read_object(file, "download the checkpoint again")
    refuse_quantised(folder, config)
    return config
