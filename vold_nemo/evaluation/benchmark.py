"""Several checkpoints, the same questions, one ``results.json``."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.data.prompts import Prompt, load_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.evaluation.answers import Settings, answer_questions, model_fingerprint
from vold_nemo.evaluation.results import build_results

ARM_CHARACTERS = "letters, digits, _ and -"


def load_questions(config: Config) -> dict[str, list[Prompt]]:
    """``{"text": [...], "image": [...]}``, whichever are configured; bad rows go to ``<evaluate.path>/rejected.jsonl``."""
    given = {"text": config.evaluate.text, "image": config.evaluate.image}
    rejected = Rejected(Path(config.evaluate.path) / "rejected.jsonl", config.data.max_rejected_share)
    questions = {
        kind: load_prompts(dataset, config.data.system_prompt, rejected, instruction=config.data.instruction)
        for kind, dataset in given.items()
        if dataset is not None
    }
    if not questions:
        raise ConfigError(
            "evaluate.text, evaluate.image", None, "at least one dataset", "set evaluate.image.path to a file"
        )
    return questions


def pick_device(device: str) -> str:
    """``auto | cpu | cuda`` -> a torch device.  Unlike training, evaluation may run on the CPU of a GPU machine."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device", device, "auto | cpu", "no CUDA device is visible: set device=cpu or run where there is one"
        )
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def evaluate(config: Config) -> dict:
    """Answer, score, write ``results.json`` and return it.  One checkpoint is in memory at a time."""
    from vold_nemo.rewards.scoring import score_answers

    options = config.evaluate
    if not options.models:
        raise ConfigError("evaluate.models", {}, "arm: checkpoint folder", "add evaluate.models.<arm>=<folder>")
    for arm in options.models:
        if not arm.replace("_", "").replace("-", "").isalnum():  # it names files
            raise ConfigError("evaluate.models", arm, ARM_CHARACTERS, "rename the arm")
    device = pick_device(config.device)
    for path in options.models.values():
        model_fingerprint(path)  # a missing checkpoint is found before the first arm has answered for an hour
    questions = load_questions(config)
    settings = Settings(
        max_tokens=options.max_tokens, samples=options.samples, seed=config.seed, batch=options.batch,
        dtype={"bf16": "bfloat16", "fp32": "float32"}[config.precision], verifier=config.reward.verifier,
    )  # fmt: skip
    score = functools.partial(score_answers, config=config.reward)
    answers, manifests = {}, {}
    for arm, path in options.models.items():
        answers[arm], manifests[arm] = answer_questions(arm, path, questions, settings, score, options.path, device)
    described = {kind: getattr(options, kind).path for kind in questions}
    results = build_results(answers, manifests, {**vars(settings), "device": device, "questions": described})
    target = Path(options.path) / "results.json"
    aside = target.with_name(f"results.json.{os.getpid()}")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(aside, target)
    return results


def summary(results: dict) -> str:
    """The accuracies as a table for a terminal."""
    kinds = list(results["differences"])
    width = max(len(arm) for arm in results["accuracy"])
    lines = [" " * width + "".join(f"  {kind:^22}" for kind in kinds)]
    for arm, by_kind in results["accuracy"].items():
        cells = []
        for kind in kinds:
            e = by_kind.get(kind)
            cells.append(f"{e['value']:6.1%} [{e['low']:6.1%},{e['high']:6.1%}]" if e else "-")
        lines.append(f"{arm:<{width}}" + "".join(f"  {cell:^22}" for cell in cells))
    return "\n".join(lines)
