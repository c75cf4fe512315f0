"""The miniature tokenizers: 53 ids for the student, the same 53 and four more for the teacher.

The layout copies Qwen's: ordinary tokens first, then the special tokens both families share, then the ones only Qwen3 has.
The embedding tables have more rows than the tokenizers have ids, and not the same number on both sides, as in reality.
"""

from __future__ import annotations

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPERATIONS = {"+": "plus", "-": "minus", "×": "times"}
FILLERS = ("please", "now", "kindly")
TASKS = ("read", "sheet", "facts", "solve")

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIALS = (
    ENDOFTEXT, IM_START, IM_END, "<|object_ref_start|>", "<|object_ref_end|>",
    VISION_START, VISION_END, "<|vision_pad|>", IMAGE_PAD, VIDEO_PAD,
)  # fmt: skip
QWEN3_ONLY = ("<tool_response>", "</tool_response>", "<think>", "</think>")

WORDS = ("user", "assistant", *TASKS, *FILLERS, *NUMBERS, *OPERATIONS.values(), "(", ")")
SYMBOLS = (*"0123456789", *OPERATIONS, "=", "?", "\n", "\\boxed", "{", "}")
VOCABULARY = (*WORDS, *SYMBOLS, *SPECIALS)
ID = {token: i for i, token in enumerate(VOCABULARY)}

STUDENT_ROWS = 60  # embedding rows: 53 ids and 7 spare rows (room for the four that only Qwen3 has)
TEACHER_ROWS = 64  # 57 ids and 7 spare rows

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def build_tokenizer(*, qwen3: bool = False):
    """A ``transformers`` fast tokenizer made from scratch; ``qwen3`` adds the four ids that only the teacher has.

    One word, digit or symbol is one token; blanks separate and are no token.  Decoding writes a blank before every word
    and bracket, so ``decode(encode(x))`` encodes to the same ids, and a trace (no words in it) comes back letter by letter.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=ENDOFTEXT))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" +"), behavior="removed"),
            pre_tokenizers.Split(Regex(r"\\boxed|[A-Za-z]+|[\s\S]"), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.Replace(Regex(r"^(?=[a-z()])"), " "), decoders.Fuse()])
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    backend.add_special_tokens(special)
    if qwen3:  # as in Qwen3: ordinary added tokens, not special ones
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in QWEN3_ONLY])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=IM_END,
        pad_token=ENDOFTEXT,
        unk_token=ENDOFTEXT,
        extra_special_tokens=[token for token in SPECIALS if token not in (IM_END, ENDOFTEXT)],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
