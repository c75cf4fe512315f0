"""The tiny random checkpoints are ordinary checkpoints."""

import json
from dataclasses import replace

import pytest
import torch

from vold_nemo.miniature.random_models import (
    TINY,
    TINY_TEACHER,
    write_questions,
    write_random_student,
    write_random_teacher,
)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return write_random_student(tmp_path_factory.mktemp("student"))


@pytest.mark.parametrize("tied", [True, False])
def test_random_checkpoints_load_with_plain_transformers(tmp_path, tied):
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3ForCausalLM

    for write, shape, loader in (
        (write_random_student, TINY, Qwen2_5_VLForConditionalGeneration),
        (write_random_teacher, TINY_TEACHER, Qwen3ForCausalLM),
    ):
        path = write(tmp_path / loader.__name__, replace(shape, tied=tied))
        model, info = loader.from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_random_checkpoints_have_no_idle_vector(student):
    from safetensors.torch import load_file

    vectors = {name: tensor for name, tensor in load_file(student / "model.safetensors").items() if tensor.ndim == 1}
    assert any(name.endswith("q_proj.bias") for name in vectors)
    for name, vector in vectors.items():
        assert not torch.equal(vector, torch.ones_like(vector)) and vector.abs().sum() > 0, name


def test_teacher_tokenizer_is_the_students_and_four_more(tmp_path, student):
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(student)
    theirs = AutoTokenizer.from_pretrained(write_random_teacher(tmp_path))
    shared = ours.get_vocab()
    assert len(shared) == 53
    assert {token: i for token, i in theirs.get_vocab().items() if token in shared} == shared
    extra = set(theirs.get_vocab()) - set(shared)
    assert extra == {"<tool_response>", "</tool_response>", "<think>", "</think>"}
    assert json.loads((student / "config.json").read_text())["text_config"]["vocab_size"] > len(theirs)


def test_images_of_a_question_meet_the_student_through_the_auto_classes(tmp_path, student):
    from datasets import load_dataset
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    file = write_questions(tmp_path / "image.parquet", count=2, images=True)
    row = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path))[0]
    tokenizer, processor = AutoTokenizer.from_pretrained(student), AutoImageProcessor.from_pretrained(student)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(student)

    images = processor(images=row["images"], return_tensors="pt")
    tokens = (images["image_grid_thw"].prod(-1) // 4).tolist()
    assert tokens == [1] + [2] * (len(row["images"]) - 1)
    text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    pieces = text.split("<|image_pad|>")
    text = pieces[0] + "".join("<|image_pad|>" * n + piece for n, piece in zip(tokens, pieces[1:], strict=True))
    inputs = tokenizer(text, return_tensors="pt")
    kinds = (inputs["input_ids"] == model.config.image_token_id).int()
    first = model(**inputs, **images, mm_token_type_ids=kinds).logits
    images["pixel_values"] = images["pixel_values"] + 1
    assert not torch.allclose(first, model(**inputs, **images, mm_token_type_ids=kinds).logits, atol=1e-3)
