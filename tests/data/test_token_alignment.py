"""One conversation under two templates, and the dry run that shows it."""

import json

import pytest

from vold_nemo.config.compose import compose
from vold_nemo.data.templates import load_tokenizer, render_prompt
from vold_nemo.data.token_alignment import View, side_by_side
from vold_nemo.miniature.random_models import write_questions, write_random_student, write_random_teacher
from vold_nemo.miniature.tokenizer import ID
from vold_nemo.planning.example import example

QUESTION = [{"role": "user", "content": "please ( six ) ( plus four )\nsolve"}]
RESPONSE = [ID[token] for token in ("6", "+", "4", "=", "0", "\n", "\\boxed", "{", "0", "}", "<|im_end|>")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("views")
    write_random_student(root / "student"), write_random_teacher(root / "teacher")
    # what Qwen2.5-VL and Qwen3 do: a system turn nobody asked for, an empty thought before the answer
    for side, old, new in (
        ("student", "{%- for message in messages -%}", "{{ '<|im_start|>facts<|im_end|>\n' }}{%- for message in messages -%}"),
        ("teacher", "assistant\n' }}", "assistant\n' }}{%- if not enable_thinking -%}{{ '<think></think>\n' }}{%- endif -%}"),
    ):
        tokenizer = load_tokenizer(root / side)
        assert old in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(old, new, 1)
        tokenizer.save_pretrained(root / side)
    write_questions(root / "questions.jsonl", count=4)
    return root


def table(lines):
    """(trained, student id, teacher id) of the rows that are shown."""
    rows = []
    for line in lines:
        cells = line[2:42].split(), line[43:].split()
        ids = [int(cell[1]) if len(cell) > 1 and cell[0].isdigit() and cell[1].isdigit() else None for cell in cells]
        if ids != [None, None]:
            rows.append((line[0] == ">", *ids))
    return rows


def test_both_sides_show_their_own_template_and_the_same_trained_response(world):
    student, teacher = load_tokenizer(world / "student"), load_tokenizer(world / "teacher")
    rows = table(side_by_side(View.of(student, QUESTION, RESPONSE), View.of(teacher, QUESTION, RESPONSE)))
    trained = [row[1:] for row in rows if row[0]]
    assert trained == [(i, i) for i in RESPONSE]
    prompt = [row[1:] for row in rows if not row[0]]
    assert [mine for mine, _ in prompt if mine is not None] == render_prompt(student, QUESTION)
    assert [other for _, other in prompt if other is not None] == render_prompt(teacher, QUESTION)
    names = teacher.get_vocab()
    assert [other for mine, other in prompt if mine is None] == [names["<think>"], names["</think>"], ID["\n"]]
    assert [mine for mine, other in prompt if other is None][1] == ID["facts"]


def test_a_long_run_of_equal_tokens_is_cut_and_says_so(world):
    tokenizer = load_tokenizer(world / "student")
    view = View.of(tokenizer, QUESTION, RESPONSE * 9)
    lines = list(side_by_side(view, view))
    assert [line for line in lines if "more, equal on both sides" in line] == ["  ... 75 more, equal on both sides"]
    assert lines[-1].split()[1] == str(len(view.ids) - 1)


def test_a_piece_of_a_character_is_shown_as_its_bytes():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    # the merges make one token of the first two bytes of a smiling face, and one of the letter e with an acute accent
    merges = [("ð", "Ł"), ("Ã", "©")]
    inner = Tokenizer(models.BPE(vocab=letters | {"ðŁ": 256, "Ã©": 257}, merges=merges))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = "{{ messages[0].content }}"
    view = View.of(tokenizer, [{"role": "user", "content": "a\u00e9\U0001f642\n\u00fc"}], [])
    assert view.tokens == ["a", "\u00e9", "\\xf0\\x9f", "\\x99", "\\x82", "\\n", "\\xc3", "\\xbc"]


@pytest.mark.parametrize("verb", ["generate_traces", "sft", "vold", "plan"])
def test_the_dry_run_shows_a_trace_where_there_is_one_and_a_prompt_otherwise(world, tmp_path, verb):
    config = compose([
        "data=miniature", f"student.path={world / 'student'}", f"teacher.path={world / 'teacher'}", f"outputs={tmp_path}",
        f"data.prompts.path={world / 'questions.jsonl'}", f"data.trace_prompts.path={world / 'questions.jsonl'}",
    ])  # fmt: skip
    lines = example(config, verb)
    assert "prompt text-00000" in lines[1] and not any(line.startswith(">") for line in lines)
    (tmp_path / "vold" / "traces").mkdir(parents=True)
    trace = {"id": "a", "sample": 0, "messages": QUESTION, "finish": "stop", "response": "", "response_ids": RESPONSE}
    lines = [json.dumps({**trace, "response_ids": None}), json.dumps(trace)]
    (tmp_path / "vold" / "traces" / "traces.jsonl").write_text("\n".join(lines))
    lines = example(config, verb)
    assert sum(line.startswith(">") for line in lines) == (len(RESPONSE) if verb in ("sft", "plan") else 0)


def test_a_dry_run_without_models_or_data_says_so_and_goes_on(world, tmp_path):
    lines = example(compose([f"student.path={tmp_path / 'none'}"]), "vold")
    assert lines[1].startswith("example  not shown: model path")
    lines = example(compose([f"student.path={world / 'student'}", f"teacher.path={world / 'teacher'}"]), "generate_traces")
    assert "open-r1/Mixture-of-Thoughts" in lines[1]
