"""Prompts as ids, and where an answer ends, for checkpoints of both families."""

import json

import pytest

from vold_nemo.config import ConfigError
from vold_nemo.data.prompts import Prompt
from vold_nemo.data.templates import eos_ids, load_tokenizer, render_prompt
from vold_nemo.miniature.random_models import write_random_student, write_random_teacher
from vold_nemo.miniature.tokenizer import ENDOFTEXT, ID, IM_END

QUESTION = [{"role": "user", "content": "please ( six ) ( plus four )\nsolve"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"student": write_random_student(root / "student"), "teacher": write_random_teacher(root / "teacher")}


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_rendered_prompt_is_what_transformers_renders(folders, side):
    tokenizer = load_tokenizer(folders[side])
    expected = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert render_prompt(tokenizer, QUESTION) == expected
    assert render_prompt(tokenizer, Prompt("0", QUESTION)) == expected
    assert tokenizer.decode(expected).endswith("<|im_start|>assistant\n") or expected[-2:] == [ID["assistant"], ID["\n"]]


def test_thinking_reaches_the_template(folders):
    tokenizer = load_tokenizer(folders["teacher"])
    tokenizer.chat_template = "{% if enable_thinking %}six{% else %}nine{% endif %}"
    assert render_prompt(tokenizer, QUESTION, thinking=True) == [ID["six"]]
    assert render_prompt(tokenizer, QUESTION) == [ID["nine"]]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_answer_ends_where_the_generation_config_and_the_tokenizer_say(folders, side, tmp_path):
    tokenizer = load_tokenizer(folders[side])
    both = sorted([ID[IM_END], ID[ENDOFTEXT]])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": both[::-1]}))
    assert eos_ids(tmp_path, tokenizer) == both
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ID[ENDOFTEXT]}))
    assert eos_ids(tmp_path, tokenizer) == both
    (tmp_path / "generation_config.json").unlink()
    assert eos_ids(tmp_path, tokenizer) == [ID[IM_END]]


def test_an_end_outside_the_vocabulary_is_refused(folders, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 151645}))
    with pytest.raises(ConfigError, match="151645"):
        eos_ids(tmp_path, load_tokenizer(folders["student"]))


def test_a_tokenizer_that_is_not_there_or_has_no_chat_template_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="checkpoint folder"):
        load_tokenizer(tmp_path / "nowhere")
    tokenizer = load_tokenizer(folders["student"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="chat template"):
        load_tokenizer(tmp_path / "plain")
