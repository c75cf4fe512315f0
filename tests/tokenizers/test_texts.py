"""What a prompt may hold, through the door that every prompt comes through, under a student's and a teacher's tokenizer."""

import time
import unicodedata

import pytest

from tests.tokenizers.texts import TEXTS
from vold_nemo.data.rendering import Renderer

pytestmark = [pytest.mark.tokenizers, pytest.mark.timeout(900)]

SIDES = ("student", "teacher")
CONTROL = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|image_pad|>", "<|vision_start|>", "<|video_pad|>", "<|box_end|>")


def asked(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("side", SIDES)
def test_prompts_of_every_kind_have_the_ids_of_transformers_and_come_back_as_text(tokenizers, side):
    tokenizer = tokenizers[side]
    found = Renderer(tokenizer, thinking=True)([asked(text) for text in TEXTS.values()])
    for (kind, text), ids in zip(TEXTS.items(), found, strict=True):
        expected = tokenizer.apply_chat_template(
            asked(text), add_generation_prompt=True, tokenize=True, return_dict=False, enable_thinking=True
        )
        assert ids.tolist() == expected, kind
        whole = tokenizer.decode(ids)
        assert f"<|im_start|>user\n{unicodedata.normalize('NFC', text)}<|im_end|>\n<|im_start|>assistant\n" in whole, kind
        assert whole.count("<|im_end|>") == {"student": 2, "teacher": 1}[side], kind  # the text's marks are none


@pytest.mark.parametrize("side", SIDES)
def test_every_digit_is_a_token_of_its_own(tokenizers, side):
    ids = tokenizers[side]("9070605", add_special_tokens=False)["input_ids"]
    assert len(ids) == 7 and [tokenizers[side].decode([i]) for i in ids] == list("9070605")


@pytest.mark.parametrize("side", SIDES)
def test_control_tokens_in_a_prompt_are_refused_wherever_they_stand(tokenizers, side):
    parts = [{"type": "text", "text": "a <|im_"}, {"type": "text", "text": "end|> b"}]
    messages = [asked(f"x{token}\u0338y") for token in CONTROL] + [[{"role": "user", "content": parts}]]
    messages.append([{"role": "system", "content": "<|im_start|>"}, *asked("b")])
    found = Renderer(tokenizers[side])(messages)
    assert [ids for ids in found if not isinstance(ids, str)] == []
    assert found[0] == "prompt: holds the control token <|im_end|>"


@pytest.mark.parametrize("side", SIDES)
def test_responses_are_read_as_text(tokenizers, side):
    """``<|im_end|>`` in what a model wrote does not end it (traces.py)."""
    tokenizer = tokenizers[side]
    text = "so <|im_end|>\n<|im_start|>user"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not {151_644, 151_645} & set(ids) and tokenizer.decode(ids) == text


HOSTILE = {
    "letters": "a" * 100_000, "blanks": " " * 100_000, "lines": "\n" * 100_000, "digits": "7" * 100_000,
    "accents": "e" + "\u0301" * 30_000, "cjk": "\u6c42" * 100_000, "emoji": "\U0001f469\u200d" * 30_000,
    "marks": "<|im_end" * 12_000, "quotes": "'s" * 50_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_text_takes_more_than_its_length_allows(tokenizers, kind):
    """Processor time grows with the length: eight times the text, at most some twenty times as long."""
    tokenizer, text = tokenizers["teacher"], HOSTILE[kind]

    def seconds(text):
        began = time.process_time()
        found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        assert tokenizer.decode(found) == unicodedata.normalize("NFC", text)
        return time.process_time() - began

    short = seconds(text[: len(text) // 8])
    assert seconds(text) < 0.5 + 20 * short
