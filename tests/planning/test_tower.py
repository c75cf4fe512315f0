"""Parameters of a vision tower are those of the model that transformers builds from the same config.json."""

import json

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.planning.published import vision_parameters


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_sizes_of_the_tower_that_a_config_leaves_out_are_those_of_its_class(kind, tmp_path):
    import torch
    import transformers as hf

    auto, name = hf.AutoModel, "Qwen2_5_VL" if kind == "qwen2_5_vl" else "Qwen3VL"
    vision = getattr(hf, f"{name}Config")(vision_config={"depth": 1}).vision_config
    with torch.device("meta"):
        expected = sum(parameter.numel() for parameter in auto.from_config(vision).parameters())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "text_config": {}, "vision_config": {"depth": 1}}))
    assert vision_parameters(str(tmp_path)) == expected
    for wrong in (3, [], {"depth": "1"}, {"depth": 1, "patch_size": -2}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "text_config": {}, "vision_config": wrong}))
        with pytest.raises(ConfigError, match=r"vision_config|Field 'depth'"):
            vision_parameters(str(tmp_path))
