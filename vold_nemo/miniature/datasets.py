"""Question files as real runs have them: JSONL for text, parquet with the images inside for images."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vold_nemo.miniature.renderer import draw_card
from vold_nemo.miniature.task import Exercise


def write_text_questions(path: str | Path, questions: Sequence[Exercise], *, name: str) -> Path:
    """JSONL with columns ``id, prompt (string), answer, domain``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for i, question in enumerate(questions):
            row = {
                "id": f"{name}-{i:05d}",
                "prompt": question.text_prompt(),
                "answer": question.answer,
                "domain": "text",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def write_image_questions(path: str | Path, questions: Sequence[Exercise], *, name: str, seed: int) -> Path:
    """Parquet with columns ``id, prompt (messages), answer, images (list of PNG), domain``.

    ``prompt`` is a list of chat messages whose content is a list of parts, ``{"type": "image"}`` once per image; ``images``
    holds ``{"bytes", "path"}`` structs with the ``datasets`` image feature in the schema's metadata, what the hub serves.
    Cards are drawn from a stream of their own, never from the training variants.
    """
    import datasets

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, 2, *name.encode()])
    rows = [
        {
            "id": f"{name}-{i:05d}",
            "prompt": [{"role": "user", "content": [{"type": p["type"], "text": p.get("text")} for p in parts]}],
            "answer": question.answer,
            "images": [{"bytes": _png(draw_card(term, generator)), "path": None} for term in question.terms],
            "domain": "image",
        }
        for i, question in enumerate(questions)
        for parts in [question.image_prompt()]
    ]
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "prompt": [{"role": text, "content": [{"type": text, "text": text}]}],
            "answer": text,
            "images": datasets.List(datasets.Image()),
            "domain": text,
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def _png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
