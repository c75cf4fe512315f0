"""The embedded world on disk: ``teacher/``, ``base/`` and ``data/``, each made once and reused while its settings are the same.

``teacher/`` and ``base/`` are ordinary Hugging Face checkpoints; ``data/`` holds

    sft_prompts.jsonl  rl_prompts.jsonl  dev_text.jsonl  test_text.jsonl  dev_image.parquet  test_image.parquet

A piece is written aside, renamed, and only then stamped with its settings (``teacher.json`` beside ``teacher/``), so that a
stopped preparation goes on with what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from vold_nemo.config import MiniatureConfig
from vold_nemo.config.check import require
from vold_nemo.config.writing import replace_text

RECIPE = 3  # raise it when lessons, cards, tokenizer or training change: worlds on disk are then made again
PIECES = ("teacher", "base", "data")


def prepare(config: MiniatureConfig) -> dict[str, str]:
    """Make what is missing under ``config.path``; returns ``{piece: "reused" | "made in 12 s"}``.

    With ``config.processes`` = 2, teacher and base are trained side by side, each on one thread; one process gives the same
    bits one after the other.

    Raises:
        ConfigError: a number of steps, questions or processes that cannot be.
    """
    require(config, "miniature.")
    path = Path(config.path)
    path.mkdir(parents=True, exist_ok=True)
    wanted = {piece: settings_of(piece, config) for piece in PIECES}
    report = {piece: "reused" for piece in PIECES if _stamp(path, piece) == wanted[piece]}
    models = [piece for piece in ("base", "teacher") if piece not in report]  # the longer one first
    with ProcessPoolExecutor(min(config.processes, 2), get_context("spawn"), _one_thread) as pool:
        jobs = {piece: pool.submit(make, piece, str(path), wanted[piece], bar) for bar, piece in enumerate(models)}
        if "data" not in report:
            report["data"] = f"made in {make('data', str(path), wanted['data']):.0f} s"
        report |= {piece: f"made in {job.result():.0f} s" for piece, job in jobs.items()}
    return {piece: report[piece] for piece in PIECES}


def settings_of(piece: str, config: MiniatureConfig) -> dict:
    """Everything that ``piece`` depends on; equal settings give equal files."""
    from vold_nemo.miniature.models import TextShape, VisionShape

    keys = {
        "teacher": ("seed", "teacher_steps"),
        "base": ("seed", "text_steps", "vision_steps", "joint_steps"),
        "data": ("seed", "sft_prompts", "train_prompts", "test_questions", "dev_questions"),
    }[piece]
    shapes = {"teacher": {"text": asdict(TextShape())}, "data": {}}
    shapes["base"] = shapes["teacher"] | {"vision": asdict(VisionShape())}
    return {"recipe": RECIPE, **{key: getattr(config, key) for key in keys}, **shapes[piece]}


def make(piece: str, path: str, settings: dict, bar: int = 0) -> float:
    """Write one piece aside, move it into place, stamp it; returns seconds.  ``bar`` is the line of its progress bar."""
    begin = time.monotonic()
    world = Path(path)
    aside, stamp = world / f".{piece}-{os.getpid()}", world / f"{piece}.json"
    shutil.rmtree(aside, ignore_errors=True)
    stamp.unlink(missing_ok=True)
    try:
        _MAKERS[piece](aside, settings, bar)
        shutil.rmtree(world / piece, ignore_errors=True)
        aside.rename(world / piece)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    seconds = time.monotonic() - begin
    replace_text(stamp, json.dumps({"settings": settings, "seconds": round(seconds, 1)}, indent=2) + "\n")
    return seconds


def _teacher(folder: Path, settings: dict, bar: int) -> None:
    from vold_nemo.miniature.models import save_checkpoint
    from vold_nemo.miniature.training import train_teacher

    save_checkpoint(train_teacher(settings["teacher_steps"], settings["seed"], bar), folder)


def _base(folder: Path, settings: dict, bar: int) -> None:
    from vold_nemo.miniature.models import save_checkpoint
    from vold_nemo.miniature.training import train_base

    steps = [settings[f"{phase}_steps"] for phase in ("text", "vision", "joint")]
    save_checkpoint(train_base(*steps, seed=settings["seed"], bar=bar), folder)


def _data(folder: Path, settings: dict, _bar: int) -> None:
    from vold_nemo.miniature.datasets import write_image_questions, write_text_questions
    from vold_nemo.miniature.task import draw_exercises

    # A new recipe asks new questions: none of those that it was tuned on or looked at with.
    stream = f"{settings['seed']}/{settings['recipe']}"
    for name, split, count in (
        ("sft_prompts", "train", settings["sft_prompts"]),
        ("rl_prompts", "train", settings["train_prompts"]),
        ("dev_text", "dev", settings["dev_questions"]),
        ("test_text", "test", settings["test_questions"]),
    ):
        write_text_questions(folder / f"{name}.jsonl", draw_exercises(count, f"{stream}/{name}", split), name=name)
    for name, split, count in (
        ("dev_image", "dev", settings["dev_questions"]),
        ("test_image", "test", settings["test_questions"]),
    ):
        questions = draw_exercises(count, f"{stream}/{name}", split)
        write_image_questions(folder / f"{name}.parquet", questions, name=name, seed=settings["seed"])


_MAKERS: dict[str, Callable[[Path, dict, int], None]] = {"teacher": _teacher, "base": _base, "data": _data}


def _stamp(world: Path, piece: str) -> dict | None:
    """Settings under which ``piece`` on disk was made; None if it is not there whole."""
    try:
        return json.loads((world / f"{piece}.json").read_text())["settings"] if (world / piece).is_dir() else None
    except (OSError, ValueError, KeyError):
        return None


def _one_thread() -> None:
    """In a worker: one thread, so that the bits do not depend on the machine's cores or on the number of processes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if not sys.stderr.isatty():  # a log file wants a line now and then; tqdm reads this when it is imported
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    import torch

    torch.set_num_threads(1)
