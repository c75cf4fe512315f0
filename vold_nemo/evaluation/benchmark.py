"""Several checkpoints, the same questions, one ``results.json``.

Processes share the work without speaking to each other: each answers its part of every set, and whichever finds at its end
that nothing is missing any more writes ``results.json``.  So ranks of a job, the tasks of a Slurm array and a run on a laptop
that is started again are the same thing.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.launcher import launch
from vold_nemo.config.writing import writing
from vold_nemo.data.prompts import Prompt, load_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.evaluation.answers import (
    Settings,
    answer_questions,
    collect,
    describe,
    keep,
    model_fingerprint,
    questions_fingerprint,
    require_whole,
)
from vold_nemo.evaluation.askable import askable
from vold_nemo.evaluation.benchmarks.load import load_benchmark
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.evaluation.results import Results, Weights, build_results
from vold_nemo.rewards.answer_keys import refusal

ARM_CHARACTERS = "letters, digits, _ and -"


def load_questions(config: Config, *, rejected: Rejected | None = None) -> dict[str, list[Prompt]]:
    """``{"text": [...], "image": [...], "mathvista": [...]}``, whichever are configured.

    Bad rows go to ``rejected``; without one they are only counted.
    """
    options = config.evaluate
    given = {"text": options.text, "image": options.image}
    rejected = rejected if rejected is not None else Rejected(None, config.data.max_rejected_share)
    questions: dict[str, list[Prompt]] = {
        kind: load_prompts(
            dataset, config.data.system_prompt, rejected, instruction=config.data.instruction,
            refuse=refusal(config.reward, parse=False), verifier=config.reward.verifier,
            listed=config.reward.verifiers,
        )
        for kind, dataset in given.items()
        if dataset is not None
    }
    for name in options.benchmarks:
        questions[name] = load_benchmark(
            name, path=options.benchmark_paths.get(name), limit=options.limit, system_prompt=config.data.system_prompt,
            rejected=rejected,
        )  # fmt: skip
    if not questions:
        raise ConfigError(
            "evaluate.text, evaluate.image, evaluate.benchmarks", None, "at least one dataset or benchmark",
            "set evaluate.image.path to a file, or evaluate.benchmarks=[mathvista]",
        )  # fmt: skip
    return questions


def part_of(config: Config) -> tuple[int, int]:
    """(number, count) of the part that this process answers: ``evaluate.shard``, shared again by the ranks of the job."""
    here = launch()
    return config.evaluate.shard * here.world + here.rank, config.evaluate.shards * here.world


def score_rows(texts: list[str], prompts: list[Prompt], *, reward) -> list:
    """Verdicts: a benchmark's questions by their own scorers, all others by ``reward.verifier``."""
    from vold_nemo.evaluation.scorers import score
    from vold_nemo.rewards.scoring import score_answers

    own = [i for i, prompt in enumerate(prompts) if isinstance(prompt, Question)]
    rest = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, Question)]
    found = dict(zip(own, score([texts[i] for i in own], [prompts[i] for i in own], reward), strict=True))
    asked = [(texts[i], prompts[i].answer, prompts[i].verifier) for i in rest]
    found |= dict(zip(rest, score_answers(asked, config=reward) if asked else [], strict=True))
    return [found[i] for i in range(len(prompts))]


def evaluate(config: Config) -> Results | None:
    """Answer, score, write ``results.json`` and return it; None while other processes still have parts to answer.

    One checkpoint is in memory at a time.
    """
    options = config.evaluate
    if not options.models:
        raise ConfigError("evaluate.models", {}, "arm: checkpoint folder", "add evaluate.models.<arm>=<folder>")
    for arm in options.models:
        if not arm.replace("_", "").replace("-", "").isalnum():  # it names files
            raise ConfigError("evaluate.models", arm, ARM_CHARACTERS, "rename the arm")
    from vold_nemo.megatron.device import pick_device  # not pick_training_device: a CPU may be asked for beside a GPU

    device = str(pick_device(config.device, launch().local_rank))
    if options.engine == "vllm":
        from vold_nemo.rollout.vllm_setup import require_vllm

        require_vllm("evaluate.engine")
    # a missing checkpoint, or one that is two, is found before the first arm has answered for an hour
    for arm, path in options.models.items():
        require_whole(arm, path)
    weights = {arm: model_fingerprint(path) for arm, path in options.models.items()}
    part = part_of(config)
    first = part[0] == 0
    file = Path(options.path) / "rejected.jsonl" if first else None
    rejected = Rejected(file, config.data.max_rejected_share, key="evaluate.path")
    questions = askable(config, load_questions(config, rejected=rejected), rejected, writes=first)
    if first and rejected.count():
        print(f"rejected {rejected.count()} questions ({rejected.summary()}): {rejected.path}", file=sys.stderr)
    settings = Settings(
        max_tokens=options.max_tokens, samples=options.samples, seed=config.seed, batch=options.batch,
        dtype={"bf16": "bfloat16", "fp32": "float32"}[config.precision], verifier=config.reward.verifier,
        temperature=options.temperature, engine=options.engine,
        vllm=config.rollout.vllm if options.engine == "vllm" else None,
    )  # fmt: skip
    score = functools.partial(score_rows, reward=config.reward)
    fingerprints = {kind: questions_fingerprint(prompts) for kind, prompts in questions.items()}
    manifests = {arm: describe(arm, path, weights[arm], fingerprints, settings) for arm, path in options.models.items()}
    for manifest in manifests.values():
        answer_questions(manifest, questions, settings, score, options.path, device, part)
    answers = {arm: collect(manifest, questions, settings, score, options.path) for arm, manifest in manifests.items()}
    if any(rows is None for rows in answers.values()):
        return None
    if options.judge.url is not None:
        from vold_nemo.evaluation.judge import judge_rows

        for rows in answers.values():
            judge_rows(rows, questions, options.judge, Path(options.path) / "judge.jsonl")
    for arm, rows in answers.items():
        keep(manifests[arm], rows, settings.samples, options.path)
    described = {kind: _source(config, kind) for kind in questions}
    models = {arm: Weights(path, weights[arm]) for arm, path in options.models.items()}
    results = build_results(answers, models, {**asdict(settings), "device": device, "questions": described})
    with writing("evaluate.path", options.path):
        results.write(Path(options.path) / "results.json")
    return results


def _source(config: Config, kind: str) -> str:
    if kind in ("text", "image"):
        return getattr(config.evaluate, kind).path
    from vold_nemo.evaluation.benchmarks.table import benchmark

    spec = benchmark(kind)
    return config.evaluate.benchmark_paths.get(kind) or f"{spec.hub} at {spec.revision or 'main'}"


def summary(results: Results) -> str:
    """The accuracies as a table for a terminal: a line for each set, a column for each arm; then the benchmarks' own scores."""
    arms, kinds = list(results.accuracy), list(results.differences)
    width = max(len(kind) for kind in kinds)
    lines = [" " * width + "".join(f"  {arm:^22}" for arm in arms)]
    for kind in kinds:
        cells = []
        for arm in arms:
            e = results.accuracy[arm].get(kind)
            cells.append(f"{e.value:6.1%} [{e.low:6.1%},{e.high:6.1%}]" if e else "-")
        lines.append(f"{kind:<{width}}" + "".join(f"  {cell:^22}" for cell in cells))
    for kind in kinds:
        own = [entry.own if (entry := results.accuracy[arm].get(kind)) else {} for arm in arms]
        for name in own[0]:
            cells = [format(scores[name], ".4g") if name in scores else "-" for scores in own]
            lines.append(f"{kind}: {name:<34}" + "".join(f"  {cell:>10}" for cell in cells))
    return "\n".join(lines)
