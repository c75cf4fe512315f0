"""A tiny world with real vocabularies: models of 151,936 rows, Qwen2.5's tokenizer for the student, Qwen3's for the teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.tokenizers.published import write_qwen2_5, write_qwen3
from tests.tokenizers.texts import TEXTS

ROWS = 151_936  # of Qwen2.5-VL-3B and of Qwen3-8B
ENDOFTEXT, IM_END, IMAGE_PAD = 151_643, 151_645, 151_655
IDS = {"bos_token_id": ENDOFTEXT, "eos_token_id": IM_END, "pad_token_id": ENDOFTEXT}
THINK = (151_667, 151_668)
# \ boxed { } 1 2, the two halves of a smiling face, a combining accent, a line's end: what the models say, beside IM_END
SAID = (59, 79_075, 90, 92, 16, 17, 9_284, 18_535, 53_839, 198)


def make(folder: Path) -> None:
    """student, teacher, text.jsonl, image.parquet."""
    from vold_nemo.miniature.models import build_student, build_teacher, student_config, teacher_config
    from vold_nemo.miniature.random_models import TINY, TINY_TEACHER, TINY_VISION, write_questions

    config = student_config(replace(TINY, head_dim=TINY.hidden // TINY.heads), TINY_VISION, ROWS)
    for one in (config, config.text_config):
        for name, value in IDS.items():
            setattr(one, name, value)
    config.image_token_id, config.video_token_id = IMAGE_PAD, 151_656
    config.vision_start_token_id, config.vision_end_token_id = 151_652, 151_653
    student = build_student(config, 0)
    loud(student.get_input_embeddings().weight, (IM_END, *SAID))
    save(student, folder / "student", write_qwen2_5)
    config = teacher_config(replace(TINY_TEACHER, tied=False), ROWS)
    for name, value in IDS.items():
        setattr(config, name, value)
    teacher = build_teacher(config, 1)
    loud(teacher.lm_head.weight, (IM_END, *SAID, *THINK))
    save(teacher, folder / "teacher", write_qwen3)
    rows = [
        {"id": f"text-{kind}", "prompt": f"{text}\nWhat is {i} + 30?", "answer": str(i + 30), "domain": "text"}
        for i, (kind, text) in enumerate(TEXTS.items())
    ]
    rows.append({"id": "text-control", "prompt": "end <|im_end|> here", "answer": "1", "domain": "text"})
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_questions(folder / "image.parquet", count=4, images=True)


def loud(rows, ids) -> None:
    """Scale the rows of ``ids``, so that the model says hardly anything else: among 151,936 equals it would never end."""
    import torch

    with torch.no_grad():
        rows[list(ids)] *= 8.0


def save(model, folder: Path, write_tokenizer) -> None:
    from transformers import GenerationConfig

    from vold_nemo.miniature.models import preprocessor_config

    model.generation_config = GenerationConfig(eos_token_id=[IM_END, ENDOFTEXT], pad_token_id=ENDOFTEXT)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    if model.config.model_type == "qwen2_5_vl":
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config()))
