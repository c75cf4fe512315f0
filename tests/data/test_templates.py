"""Prompts as ids, and where an answer ends, for checkpoints of both families."""

import json
import shutil

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


@pytest.fixture
def copied(folders, tmp_path):
    """A student's folder whose template files a test may change; its own template is in ``chat_template.jinja``."""
    folder = shutil.copytree(folders["student"], tmp_path / "copied")
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    configured(folder, chat_template=None)
    return folder


def configured(folder, **changes):
    file = folder / "tokenizer_config.json"
    content = {key: value for key, value in (json.loads(file.read_text()) | changes).items() if value is not None}
    file.write_text(json.dumps(content))


def _beside(folder, name, text):
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)


SIX, NINE = "{{ 'six' }}", "{{ 'nine' }}"
FORMS = {
    "a text in the tokenizer's config": lambda f: configured(f, chat_template=SIX),
    "named ones in the tokenizer's config": lambda f: configured(
        f, chat_template=[{"name": "tool_use", "template": NINE}, {"name": "default", "template": SIX}]),
    "a file": lambda f: (f / "chat_template.jinja").write_text(SIX),
    "a file beside the tokenizer's config": lambda f: (
        (f / "chat_template.jinja").write_text(SIX), configured(f, chat_template=NINE)),
    "a file with others beside it": lambda f: ((f / "chat_template.jinja").write_text(SIX), _beside(f, "tool_use", NINE)),
    "the default among the others": lambda f: (_beside(f, "default", SIX), _beside(f, "rag", NINE)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_template_is_found_where_transformers_finds_it(copied, form):
    from transformers import AutoTokenizer

    FORMS[form](copied)
    theirs = AutoTokenizer.from_pretrained(copied)
    assert render_prompt(load_tokenizer(copied), QUESTION) == render_prompt(theirs, QUESTION) == [ID["six"]]


def test_the_processors_file_counts_where_the_tokenizer_has_none_and_a_difference_is_said(copied, caplog):
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": SIX}))
    assert render_prompt(load_tokenizer(copied), QUESTION) == [ID["six"]] and not caplog.text
    (copied / "chat_template.jinja").write_text(NINE)
    assert render_prompt(load_tokenizer(copied), QUESTION) == [ID["nine"]]
    assert "chat_template.json differs from the tokenizer's" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: configured(f, chat_template=[{"name": "rag", "template": SIX}]), "'rag'.*chat_template.jinja"),
        (lambda f: _beside(f, "tool_use", SIX), "'tool_use'.*'default'"),
        (lambda f: (f / "chat_template.json").write_text('{"chat_template": ["a"]}'), "list of named ones"),
        (lambda f: (f / "chat_template.json").write_text("[]"), "chat_template.json.*a JSON object"),
        (lambda f: (f / "chat_template.json").write_text('{"chat_te'), "chat_template.json"),
        (lambda f: (f / "chat_template.jinja").write_text("{{ 'six'\n{% if %}"), "line [12]: .*a Jinja template"),
        (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff\xfe{"), "model path"),
        (lambda f: configured(f, chat_template=[3]), "model path"),
        (lambda f: (f / "tokenizer_config.json").write_text("[]"), "model path"),
        (lambda f: (f / "tokenizer.json").write_text('{"model": 3}'), "model path"),
        (lambda f: (f / "tokenizer.json").write_text("[" * 100_000), "model path"),
    ],
    ids=["one name", "no default", "list", "array", "cut off", "no template", "no text", "numbers", "config", "model", "deep"],
)
def test_a_template_that_could_not_be_used_is_refused_with_its_file(copied, spoil, words):
    spoil(copied)
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        load_tokenizer(copied)


@pytest.mark.parametrize("content", ['{"eos_token_id": [1,', "[1, 2]", "3", '{"eos_token_id": "1"}', '{"eos_token_id": [true]}',
                                     '{"eos_token_id": [[1]]}', '{"eos_token_id": 1.0}', "[" * 100_000])  # fmt: skip
def test_a_generation_config_that_cannot_be_read_is_no_absent_one(folders, tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        eos_ids(tmp_path, load_tokenizer(folders["student"]))


@pytest.mark.parametrize("content", [None, "{}", '{"eos_token_id": null}', '{"eos_token_id": []}'])
def test_ends_that_nobody_names_are_warned_about_and_taken_from_the_config(folders, tmp_path, content, caplog):
    tokenizer = load_tokenizer(folders["student"])
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
    assert eos_ids(tmp_path, tokenizer) == [ID[IM_END]]
    assert "generation_config.json names no eos_token_id" in caplog.text
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": ID[ENDOFTEXT]}))  # as transformers' generate does
    assert eos_ids(tmp_path, tokenizer) == sorted([ID[IM_END], ID[ENDOFTEXT]])
