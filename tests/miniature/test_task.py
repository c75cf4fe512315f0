"""Questions, traces, prompts and cards are what the experiment rests on."""

import numpy as np
import pytest
import torch

from vold_nemo.miniature.lessons import IGNORE, Classroom, cards_batch, collate, expand_images
from vold_nemo.miniature.random_models import write_random_student
from vold_nemo.miniature.renderer import CELL, GLYPHS, CellBank, draw_card, draw_cell
from vold_nemo.miniature.task import Exercise, draw_exercises
from vold_nemo.miniature.tokenizer import IM_END, VOCABULARY, build_tokenizer

EXAMPLE = Exercise(digits=(2, 9, 6, 4, 8), operators=("+", "-", "-", "+"), fillers=("now",))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def ids_of(tokenizer, content):
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def test_trace_of_the_example_is_23_tokens_and_decodes_letter_by_letter(tokenizer):
    assert EXAMPLE.trace() == "2+9=1-6=5-4=1+8=9\n\\boxed{9}<|im_end|>"
    ids = tokenizer(EXAMPLE.trace())["input_ids"]
    assert len(ids) == 23
    assert tokenizer.decode(ids) == EXAMPLE.trace()


def test_prompts_are_the_documented_ones(tokenizer):
    def rendered(content):
        messages = [{"role": "user", "content": content}]
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    assert rendered(EXAMPLE.text_prompt()) == (
        "<|im_start|>user\nnow ( two ) ( plus nine ) ( minus six ) ( minus four ) ( plus eight )\nsolve<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    card = "<|vision_start|><|image_pad|><|vision_end|>"
    assert rendered(EXAMPLE.image_prompt()) == (
        f"<|im_start|>user\nnow{card * 5}\nsolve<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_text_term_and_its_card_have_equal_token_counts(tokenizer):
    for question in draw_exercises(20, "equal counts"):
        cards = expand_images(ids_of(tokenizer, question.image_prompt()), [len(term) for term in question.terms])
        assert len(cards) == len(ids_of(tokenizer, question.text_prompt()))


def test_no_token_of_a_question_is_unknown(tokenizer):
    for question in draw_exercises(200, "unknown"):
        for ids in (ids_of(tokenizer, question.text_prompt()), tokenizer(question.trace())["input_ids"]):
            assert tokenizer.unk_token_id not in ids
    assert len(tokenizer) == len(set(VOCABULARY)) == 53


def test_results_equal_python_arithmetic_modulo_ten():
    for question in draw_exercises(300, "arithmetic"):
        expression = str(question.digits[0])
        for term, result in zip(question.terms[1:], question.results, strict=True):
            expression = f"({expression}{term.replace('×', '*')})"
            assert eval(expression) % 10 == result


def test_splits_share_no_question_and_streams_are_reproducible():
    rows = {split: {q.row() for q in draw_exercises(3000, "splits", split)} for split in ("train", "dev", "test")}
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["dev"] and not rows["dev"] & rows["test"]
    assert draw_exercises(50, "a") == draw_exercises(50, "a") != draw_exercises(50, "b")
    assert {len(q.digits) for q in draw_exercises(50, "a")} == {4, 5, 6}


def test_glyphs_look_different():
    """A sign that the font lacks is drawn as an empty box, the same for all: two such signs could not be told apart."""
    means = [np.mean([draw_cell(g, np.random.default_rng(i)) for i in range(40)], axis=0) for g in GLYPHS]
    for i, one in enumerate(means):
        for other in means[:i]:
            assert np.abs(one - other).max() > 25


def test_cell_bank_gives_the_image_processors_patches(tmp_path):
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(write_random_student(tmp_path))
    bank = CellBank(variants=1, seed=3)
    cells = np.random.default_rng([3, 1])
    drawn = {glyph: draw_cell(glyph, cells) for glyph in GLYPHS}
    cards = ["7", "+4", "×0"]
    ours = cards_batch(cards, bank, np.random.default_rng(0))
    images = [
        Image.fromarray(np.concatenate([drawn[glyph] for glyph in card], axis=1)).convert("RGB") for card in cards
    ]
    theirs = processor(images=images, return_tensors="pt")
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"].float(), atol=1e-5, rtol=0)


def test_cards_are_one_or_two_cells_and_vary():
    generator = np.random.default_rng(0)
    assert draw_card("7", generator).size == (CELL, CELL) and draw_card("+7", generator).size == (2 * CELL, CELL)
    assert draw_card("7", generator).tobytes() != draw_card("7", generator).tobytes()


def test_base_never_learns_to_chain_results(tokenizer):
    """No lesson of the base but the isolated facts trains a result."""
    classroom, bank = Classroom(tokenizer, "chain"), CellBank(2, 0)
    lessons = [classroom.base(0.5) for _ in range(300)]
    kinds = set()
    for lesson in lessons:
        assert all(label in (token, IGNORE) for token, label in zip(lesson.response, lesson.labels, strict=True))
        text = tokenizer.decode(lesson.response)
        kind = "solve" if "boxed" in text else "facts" if "\n" in text else "sheet" if "=" in text else "read"
        kinds.add(kind)
        if kind == "solve":
            assert text.count("=?") == text.count("=") > 0
        elif kind == "sheet":
            blanks = [(lesson.response[i], lesson.labels[i]) for i in range(4, len(lesson.labels), 4)]
            assert all(label == IGNORE or tokenizer.decode([token]) == "?" for token, label in blanks[:-1])
    assert kinds == {"solve", "facts", "sheet", "read"}
    assert any(lesson.cells for lesson in lessons) and any(not lesson.cells for lesson in lessons)
    batch = collate(lessons[:16], bank, np.random.default_rng(0))
    assert batch["mm_token_type_ids"].sum() == batch["image_grid_thw"].prod(-1).sum() // 4


def test_teacher_learns_right_traces(tokenizer):
    classroom = Classroom(tokenizer, "traces")
    endings = [tokenizer.decode(classroom.teacher(facts_share=0.0).response) for _ in range(20)]
    for text in endings:
        calculation, boxed = text.split("\n")
        assert boxed == f"\\boxed{{{calculation[-1]}}}{IM_END}"
