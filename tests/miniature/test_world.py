"""The world on disk: complete, in ordinary formats, reused, and the same from the same settings."""

import json

import pytest

from vold_nemo.config import ConfigError, DatasetConfig, MiniatureConfig, PromptFieldsConfig
from vold_nemo.miniature.world import PIECES, make, prepare, settings_of

SMOKE = {
    "teacher_steps": 2, "text_steps": 1, "vision_steps": 1, "joint_steps": 1,
    "sft_prompts": 6, "train_prompts": 10, "test_questions": 4, "dev_questions": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    report = prepare(MiniatureConfig(path=str(path), **SMOKE))
    assert all(what.startswith("made in") for what in report.values())
    return path


def test_checkpoints_load_and_answer_with_plain_transformers(world):
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen3ForCausalLM

    for name, loader in (("teacher", Qwen3ForCausalLM), ("base", Qwen2_5_VLForConditionalGeneration)):
        tokenizer = AutoTokenizer.from_pretrained(world / name)
        model, info = loader.from_pretrained(world / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        inputs = tokenizer("( two )", return_tensors="pt")
        assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_data_files_are_read_without_a_rejected_row(world, tmp_path):
    from vold_nemo.data.prompts import load_prompts
    from vold_nemo.data.rejected import Rejected

    counts = {"sft_prompts.jsonl": 6, "rl_prompts.jsonl": 10, "test_text.jsonl": 4, "dev_text.jsonl": 3,
              "test_image.parquet": 4, "dev_image.parquet": 3}  # fmt: skip
    assert {file.name for file in (world / "data").iterdir()} == set(counts)
    for name, count in counts.items():
        image = "images" if name.endswith("parquet") else None
        fields = PromptFieldsConfig(image=image, id="id", domain="domain")
        dataset = DatasetConfig(path=str(world / "data" / name), fields=fields)
        prompts = load_prompts(dataset, None, Rejected(tmp_path / "rejected.jsonl", 0.0))
        assert len(prompts) == count
        for prompt in prompts:
            assert prompt.answer.isdigit()
            assert bool(prompt.images) == bool(image)
            if image:
                kinds = [part["type"] for part in prompt.messages[0]["content"]]
                assert kinds.count("image") == len(prompt.images) >= 4


def test_second_run_reuses_everything_and_a_changed_setting_remakes_its_piece_only(world):
    before = {piece: (world / piece).stat().st_mtime_ns for piece in PIECES}
    assert set(prepare(MiniatureConfig(path=str(world), **SMOKE)).values()) == {"reused"}
    report = prepare(MiniatureConfig(path=str(world), **SMOKE | {"dev_questions": 2}))
    assert report["teacher"] == report["base"] == "reused" and report["data"].startswith("made")
    assert {piece: (world / piece).stat().st_mtime_ns for piece in ("teacher", "base")} == {
        piece: before[piece] for piece in ("teacher", "base")
    }


def test_a_piece_without_its_stamp_counts_as_missing(world):
    """What a kill leaves behind: a folder, no stamp."""
    (world / "data.json").unlink()
    report = prepare(MiniatureConfig(path=str(world), **SMOKE))
    assert report["teacher"] == "reused" and report["data"].startswith("made")


@pytest.mark.long
def test_equal_settings_give_equal_bytes_whatever_the_number_of_processes(world, tmp_path):
    prepare(MiniatureConfig(path=str(tmp_path), processes=1, **SMOKE))
    for name in (
        "teacher/model.safetensors",
        "base/model.safetensors",
        "data/test_image.parquet",
        "data/rl_prompts.jsonl",
    ):
        assert (world / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_another_seed_gives_other_questions(tmp_path):
    for seed in (0, 1):
        make("data", str(tmp_path / str(seed)), settings_of("data", MiniatureConfig(path="", seed=seed, **SMOKE)))
    texts = [(tmp_path / str(seed) / "data" / "test_text.jsonl").read_text() for seed in (0, 1)]
    assert texts[0] != texts[1] and json.loads(texts[0].splitlines()[0])["id"] == "test_text-00000"


@pytest.mark.parametrize("key", ["teacher_steps", "joint_steps", "processes", "test_questions"])
def test_numbers_below_one_are_refused_by_name(tmp_path, key):
    with pytest.raises(ConfigError, match=f"miniature.{key}"):
        prepare(MiniatureConfig(path=str(tmp_path), **SMOKE | {key: 0}))
