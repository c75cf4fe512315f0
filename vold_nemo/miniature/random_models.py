"""Tiny checkpoints with random weights and tiny question files, written in a second: the material of tests.

Every norm weight and bias is moved away from its initial one or zero, so that a loader that forgets it is found out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vold_nemo.miniature.models import (
    TextShape,
    VisionShape,
    build_student,
    build_teacher,
    save_checkpoint,
    student_config,
    teacher_config,
)
from vold_nemo.miniature.tokenizer import STUDENT_ROWS, TEACHER_ROWS

TINY = TextShape(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=64, initializer_range=0.2)
TINY_TEACHER = replace(TINY, hidden=48, head_dim=16, ffn=80)
TINY_VISION = VisionShape(depth=2, hidden=32, heads=2, ffn=48, initializer_range=0.2)


def write_random_student(path: str | Path, shape: TextShape = TINY, *, rows: int = STUDENT_ROWS, seed: int = 0) -> Path:
    """A Qwen2.5-VL checkpoint folder (53 ids, ``rows`` embedding rows, head dim = hidden / heads); returns ``path``."""
    shape = replace(shape, head_dim=shape.hidden // shape.heads)
    return _write(build_student(student_config(shape, TINY_VISION, rows), seed), path, seed)


def write_random_teacher(
    path: str | Path, shape: TextShape = TINY_TEACHER, *, rows: int = TEACHER_ROWS, seed: int = 1
) -> Path:
    """A Qwen3 checkpoint folder (57 ids: the student's and four of its own); returns ``path``."""
    return _write(build_teacher(teacher_config(shape, rows), seed), path, seed)


def write_questions(path: str | Path, *, count: int = 16, images: bool = False, seed: int = 0) -> Path:
    """``count`` questions: JSONL of text questions, or parquet of image questions with the cards inside."""
    from vold_nemo.miniature.datasets import write_image_questions, write_text_questions
    from vold_nemo.miniature.task import draw_exercises

    questions = draw_exercises(count, f"write_questions/{seed}")
    if images:
        return write_image_questions(path, questions, name="image", seed=seed)
    return write_text_questions(path, questions, name="text")


def _write(model, path: str | Path, seed: int) -> Path:
    """Save ``model``, its vectors moved."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    save_checkpoint(model, path)
    return Path(path)
