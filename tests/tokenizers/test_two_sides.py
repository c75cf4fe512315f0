"""Qwen2.5 and Qwen3 side by side: what they share, what the student may adopt, and one prompt as each of them reads it."""

import json

import pytest

from tests.tokenizers.published import QWEN2_5_END, write_qwen2_5
from tests.tokenizers.texts import TEXTS
from tests.tokenizers.world import ROWS, THINK
from vold_nemo.data.templates import load_tokenizer, render_prompt
from vold_nemo.data.token_alignment import View, side_by_side
from vold_nemo.data.vocabulary import VocabularyContract, added_tokens
from vold_nemo.megatron.adoption import adopt, append_tokens

pytestmark = [pytest.mark.tokenizers, pytest.mark.timeout(900)]

EXTRA = {151_665: "<tool_response>", 151_666: "</tool_response>", 151_667: "<think>", 151_668: "</think>"}
QUESTION = [{"role": "user", "content": "What is 12 + 30? \U0001f642"}]
TURNS = [*QUESTION, {"role": "assistant", "content": "<think>\nsum\n</think>\n\n42"}, {"role": "user", "content": "And 7?"}]


@pytest.mark.parametrize("rows", [ROWS, 152_064])  # the 3B's table, that of the 7B and larger
def test_they_share_every_id_up_to_151664(tokenizers, rows):
    contract = VocabularyContract.from_tokenizers(tokenizers["student"], rows, tokenizers["teacher"], ROWS, padded=152_064)
    assert int(contract.shared.sum()) == QWEN2_5_END and bool(contract.shared[:QWEN2_5_END].all())
    assert int(contract.sampleable.sum()) == rows and contract.student_only == {} and contract.teacher_only == EXTRA


def test_a_qwen2_5_tokenizer_splits_the_tags_of_thinking(tokenizers):
    text = "<think>\nso\n</think>\n\n42"
    student, teacher = (tokenizers[side](text, add_special_tokens=False)["input_ids"] for side in ("student", "teacher"))
    assert set(THINK) <= set(teacher) and max(student) < QWEN2_5_END and len(student) > len(teacher)
    assert tokenizers["student"].decode(student) == tokenizers["teacher"].decode(teacher) == text


def test_adopted_tokens_make_both_read_alike_and_an_export_reads_them_back(tokenizers, tmp_path):
    folder = write_qwen2_5(tmp_path / "student")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    student = load_tokenizer(folder)
    adopted = adopt(student, ROWS, tokenizers["teacher"])
    assert list(adopted) == list(EXTRA)
    assert {i: [student.decode([part]) for part in adopted[i]] for i in THINK} == {
        THINK[0]: ["<", "think", ">"], THINK[1]: ["</", "think", ">"],
    }  # fmt: skip
    assert append_tokens(folder, added_tokens(student)) == list(EXTRA.values())
    exported = load_tokenizer(folder)
    texts = [*TEXTS.values(), "<think>a</think><tool_response>b</tool_response>", "x<think>\n\n</think>\n\ny"]
    expected = tokenizers["teacher"](texts, add_special_tokens=False)["input_ids"]
    assert student(texts, add_special_tokens=False)["input_ids"] == expected
    assert exported(texts, add_special_tokens=False)["input_ids"] == expected
    assert exported.decode([*THINK, 16], skip_special_tokens=True) == "<think></think>1"  # a verifier sees them
    contract = VocabularyContract.from_tokenizers(exported, ROWS, tokenizers["teacher"], ROWS, padded=ROWS)
    assert int(contract.shared.sum()) == QWEN2_5_END + len(EXTRA) and contract.teacher_only == {}


def test_thinking_is_the_switch_of_the_teachers_template_alone(tokenizers):
    student, teacher = tokenizers["student"], tokenizers["teacher"]
    off, on = (render_prompt(teacher, QUESTION, thinking=thinking) for thinking in (False, True))
    empty = teacher("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"]
    assert off == on + empty and empty[0] == THINK[0] and THINK[1] in empty
    assert render_prompt(student, QUESTION) == render_prompt(student, QUESTION, thinking=True)
    assert not set(EXTRA) & set(render_prompt(student, QUESTION))


def test_a_thought_of_an_earlier_turn_is_dropped_by_the_teachers_template_only(tokenizers):
    said = {side: tokenizers[side].decode(render_prompt(tokenizers[side], TURNS, thinking=True)) for side in tokenizers}
    assert "sum" in said["student"] and "sum" not in said["teacher"]
    assert all("42" in text and text.endswith("<|im_start|>assistant\n") for text in said.values())


def test_one_conversation_is_shown_as_both_read_it(tokenizers):
    student, teacher = tokenizers["student"], tokenizers["teacher"]
    response = [*teacher("\u00e9 is \\boxed{42} \U0001f642", add_special_tokens=False)["input_ids"], 151_645]
    views = View.of(student, QUESTION, response), View.of(teacher, QUESTION, response, thinking=False)
    lines = list(side_by_side(*views))
    trained = [line for line in lines if line.startswith(">")]
    assert len(trained) == len(response)
    for line, i in zip(trained, response, strict=True):
        assert line.split().count(str(i)) >= 2, line  # the same id on both sides
    one_sided = "\n".join(line for line in lines[1:] if not line.startswith(">"))
    assert "<think>" in one_sided and "helpful" in one_sided  # the teacher's empty thought, the student's system turn
    # no token is a bare replacement sign: pieces of a character say their bytes
    assert not any("\ufffd" in token for view in views for token in view.tokens)


def test_a_vocabulary_of_another_family_is_refused_with_the_first_id(files, tokenizers, tmp_path):
    import shutil

    from vold_nemo.config import ConfigError

    folder = shutil.copytree(files("llama3"), tmp_path / "llama3")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ConfigError, match=r"for the teacher.*for the student.*ids differ"):
        VocabularyContract.from_tokenizers(tokenizers["student"], ROWS, load_tokenizer(folder), ROWS, padded=ROWS)
