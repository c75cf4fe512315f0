"""Rows in each benchmark's published schema, with questions of our own.

Where each schema was read:

    mmmu_pro_*   github.com/MMMU-Benchmark/MMMU, mmmu-pro/infer/infer_transformers.py and its output/*.jsonl
    mmmu         lmms-eval tasks/mmmu/utils.py (lmms-lab/MMMU: one parquet of all subjects)
    mathvision   github.com/mathllm/MATH-V, data/test.jsonl; the parquet adds decoded_image (lmms-eval tasks/mathvision)
    mathvista    github.com/lupantech/MathVista, README (data format), data/testmini.json
    logicvista   github.com/Yijia-Xiao/LogicVista, data/dataset.json: an object of rows by id, images beside it
    mathverse    github.com/ZrrSkywalker/MathVerse, README and data/testmini.json
    mmstar       lmms-eval tasks/mmstar/utils.py
    dynamath     github.com/DynaMath/DynaMath, dataset/dataset.json; column names of the hub copy: lmms-eval tasks/dynamath
    wemath       github.com/We-Math/We-Math, data/testmini.json and README (result format)
    geometry3k   hiyouga/geometry3k: images, problem, answer
    mme          lmms-eval tasks/mme
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from tests.tables import table


def png(shade: int = 200, size: int = 56) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, shade, 255 - shade)).save(buffer, "PNG")
    return buffer.getvalue()


def image(shade: int = 200) -> dict[str, Any]:
    return {"bytes": png(shade), "path": "x.png"}


def rows() -> dict[str, list[dict[str, Any]]]:
    """Benchmark -> rows of its file; ``{"shade": ...}`` of a line becomes such an :func:`image`."""

    def with_images(value: Any) -> Any:
        if isinstance(value, list):
            return [with_images(part) for part in value]
        if isinstance(value, dict):
            return image(value["shade"]) if "shade" in value else {name: with_images(part) for name, part in value.items()}
        return value

    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in table(Path(__file__).with_suffix(".jsonl"), "benchmark", "row"):
        found.setdefault(name, []).append(with_images(row))
    return found


def write(folder: Path, name: str) -> Path:
    """The benchmark's files as they are published, below ``folder``."""
    import pyarrow
    import pyarrow.parquet

    root = folder / name
    if name == "logicvista":
        (root / "images").mkdir(parents=True)
        (root / "images" / "v1_0.png").write_bytes(png())
        facts = {
            "imagename": "v1_0.png",
            "reasoning": "...",
            "broad_capability": ["diagram"],
            "specific_capability": ["sequence"],
        }
        questions = {
            "v1_0": {**facts, "question": "Which of A-D comes next?", "answer": "C", "skill": ["inductive"]},
            "v1_1": {**facts, "question": "Which belong together?", "answer": "D, B", "skill": ["inductive"]},
            "v1_2": {**facts, "question": "How many?", "answer": "3", "skill": ["numerical"]},
            "v1_3": {**facts, "question": "Which turns left?", "answer": "", "skill": ["mechanical"]},
        }
        (root / "dataset.json").write_text(json.dumps(questions))
        return root
    from vold_nemo.evaluation.benchmarks.table import BENCHMARKS

    for pattern in BENCHMARKS[name].files:
        if (name == "mathverse" and "text_only" in pattern) or pattern.endswith(".json"):
            continue
        file = root / pattern.replace("*", "00000-of-00001")
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()[name]), file)
    return root


def load(folder, name: str, **options) -> list:
    """The questions of benchmark ``name`` that :func:`write` left in ``folder``."""
    from vold_nemo.data.rejected import Rejected
    from vold_nemo.evaluation.benchmarks.load import load_benchmark

    settings = {"limit": None, "system_prompt": None, "rejected": Rejected(None, 0.9)} | options
    return load_benchmark(name, path=str(folder / name), **settings)
