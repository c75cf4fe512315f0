"""What a verb will read, opened before anything runs: what ``dry_run=true`` says of it.

    reads    evaluate.models.base: outputs/world/base: qwen2_5_vl, 1 file of weights, 4.1 MiB
    not here yet: evaluate.models.sft = 'outputs/mine/sft/hf' ...

One rule for every verb: what is not there is "not here yet" (:class:`Pending`) and stops no dry run, since the verb before may
make it; what is there and cannot be used is an error, as it would be in the run; what a verb does without is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.json_files import read_object
from vold_nemo.config.sources import local_folder
from vold_nemo.data.prompts import Wanted
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rows import FIRST_ROWS, count_rows
from vold_nemo.planning import opening, published
from vold_nemo.planning.opening import Input, missing, refused, rows_said, under
from vold_nemo.planning.validity import Pending, missing_model


@dataclass
class Opened:
    """``said``: a line for each input; ``waiting``: what is not here yet; ``errors``: what is here and cannot be used."""

    said: list[str] = field(default_factory=list)
    waiting: list[Pending] = field(default_factory=list)
    errors: list[ConfigError] = field(default_factory=list)


def opened(config: Config, verb: str) -> Opened:
    """Everything that ``recipes/<verb>.py`` reads under ``config``, looked into; nothing is written and nothing fetched."""
    found = Opened()
    inputs = INPUTS[verb](config) if verb in INPUTS else iter(())
    for one in {item.key: item for item in inputs}.values():
        line = f"reads    {one.key}: {one.path}"
        try:
            found.said.append(f"{line}: {one.look()}")
        except ConfigError as error:
            if one.spared:
                why = "not here" if isinstance(error, Pending) else f"{error.key} = {error.value!r}"
                found.said.append(f"{line}: {why}; {one.spared}")
            elif isinstance(error, Pending):
                found.said.append(f"{line}: not here yet")
                found.waiting.append(error)
            else:
                found.errors.append(error)
    if not found.said and not found.errors and verb in INPUTS:
        found.said.append("reads    no file")
    return found



def _teachers(config: Config) -> Iterator[Input]:
    for name, one in {"teacher": config.teacher, **{f"teachers.{n}": t for n, t in config.teachers.items()}}.items():
        yield opening.model(config, f"{name}.path", one.path)


def _prepare_data(config: Config) -> Iterator[Input]:
    from vold_nemo.data.prepare import evaluation_sets, training_sets
    from vold_nemo.rewards.answer_keys import refusal

    try:
        sets = training_sets(config)
    except ConfigError as error:
        yield refused(error)
        return
    verifier, own = config.reward.verifier, config.traces.engine == "dataset"
    for name, dataset in sets.items():
        traces = name == "trace_prompts"
        yield opening.rows_of(config, f"data.{name}", dataset, lambda traces=traces: Wanted(  # type: ignore[misc]
            answers=not traces, responses=traces and own, refuse=None if traces else refusal(verifier), verifier=verifier,
        ))  # fmt: skip
    for name, dataset in evaluation_sets(config).items():
        key = {"text": "evaluate.text", "image": "evaluate.image", "validation": "vold.validation.data",
               "validation_text": "vold.validation.text"}.get(name, f"prepare.against.{name}")  # fmt: skip
        yield opening.rows_of(config, key, dataset, opening.compared)


def _inspect_data(config: Config) -> Iterator[Input]:
    from vold_nemo.data.inspection import dataset_of, wanted

    try:
        key, dataset = dataset_of(config)
    except ConfigError as error:
        yield refused(error)
        return
    yield opening.rows_of(config, key, dataset, lambda: wanted(config, key))
    if (path := config.inspect.tokenizer) is not None:
        yield opening.tokenizer("inspect.tokenizer", path)


def _generate_traces(config: Config) -> Iterator[Input]:
    own = config.traces.engine == "dataset"
    if not own:
        yield opening.model(config, "teacher.path", config.teacher.path)
    name = "prompts" if config.data.trace_prompts is None else "trace_prompts"
    yield opening.rows_of(config, f"data.{name}", getattr(config.data, name), lambda: Wanted(answers=False, responses=own))


def _sft(config: Config) -> Iterator[Input]:
    yield opening.model(config, "student.path", config.student.path)
    yield opening.traces("traces.path", config.traces.path)
    if config.tokenizer.adopt_teacher_tokens:
        yield from _teachers(config)


def _vold(config: Config) -> Iterator[Input]:
    mend = "run recipes/sft.py and recipes/export_hf.py first, or give vold.start=CHECKPOINT"
    yield opening.model(config, "student.path", config.student.path)
    if Path(config.vold.start).is_dir():
        yield opening.model(config, "vold.start", config.vold.start)
    else:
        yield refused(missing("vold.start", config.vold.start, "a checkpoint folder", mend))
    if config.objective.kl.enabled:
        yield from _teachers(config)
    yield opening.rows_of(config, "data.prompts", config.data.prompts, opening.asked(config, learned=True))
    validation = config.vold.validation
    for name in ("data", "text") if validation.every else ():
        if (dataset := getattr(validation, name)) is not None:
            yield opening.rows_of(config, f"vold.validation.{name}", dataset, opening.asked(config, learned=False))


def _export_hf(config: Config) -> Iterator[Input]:
    yield opening.run_to_export(config)
    yield opening.model(config, "export.source", config.export.source)


def _evaluate(config: Config) -> Iterator[Input]:
    options = config.evaluate
    if not options.models:
        yield refused(ConfigError("evaluate.models", {}, "arm: checkpoint folder", "add evaluate.models.<arm>=<folder>"))
    for arm, path in options.models.items():
        mend = "run the recipe that writes this checkpoint, or take the arm out of evaluate.models"
        yield opening.answering(config, f"evaluate.models.{arm}", path, mend)
    if not (options.text or options.image or options.benchmarks):
        yield refused(ConfigError(
            "evaluate.text, evaluate.image, evaluate.benchmarks", None, "at least one dataset or benchmark",
            "set evaluate.image.path to a file, or evaluate.benchmarks=[mathvista]",
        ))  # fmt: skip
    yield from _questions(config)


def _questions(config: Config, spared: str = "") -> Iterator[Input]:
    for name in ("text", "image"):
        if (dataset := getattr(config.evaluate, name)) is not None:
            yield opening.rows_of(config, f"evaluate.{name}", dataset, opening.asked(config, learned=False), spared)
    for name in config.evaluate.benchmarks:
        yield opening.benchmark_of(config, name, spared)


def _compare(config: Config) -> Iterator[Input]:
    from vold_nemo.evaluation.pairs import read_models

    results = config.compare.results
    for name, where in results.items():
        yield opening.evaluation(f"compare.results.{name}", where)
    folders = [Path(where).parent if Path(where).suffix == ".json" else Path(where) for where in results.values()]
    if all(any((folder / "answers").glob("*.jsonl")) for folder in folders):
        yield Input("compare.results", "all", lambda: f"{len(read_models(results))} models to compare")
    yield from _questions(config, "images are not shown")


def _report(config: Config) -> Iterator[Input]:
    from vold_nemo.evaluation.results import Results

    key, file = "report.results", Path(config.report.results)

    def look() -> str:
        if not file.is_file():
            raise missing(key, file, "the results.json of an evaluation", "run recipes/evaluate.py first")
        return f"arms {', '.join(under(key, lambda: Results.of_file(file)).accuracy)}"

    yield Input(key, str(file), look)
    for arm, run in config.report.runs.items():
        folder = Path(config.outputs) / run
        yield Input(f"report.runs.{arm}", str(folder), partial(_look_at_run, f"report.runs.{arm}", folder),
                    "the page says so")  # fmt: skip
    yield from _questions(config, "no examples are shown")


def _look_at_run(key: str, folder: Path) -> str:
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise missing(key, folder, "a run folder with metrics.jsonl", "train this run first")
    with metrics.open("rb") as lines:
        return f"{sum(1 for _ in lines):,} lines of metrics"


def _handoff(config: Config) -> Iterator[Input]:
    options = config.handoff
    if options.bring is None:
        if options.model is None:
            mend = "give the checkpoint to write a script for, or handoff.bring=FILE"
            yield refused(ConfigError("handoff.model", None, "an exported checkpoint folder", mend))
            return
        yield opening.answering(config, "handoff.model", options.model, "run recipes/export_hf.py first")
        return
    bring = options.bring

    def look() -> str:
        from vold_nemo.evaluation.handoff import answer_files

        if not Path(bring).exists():
            raise missing("handoff.bring", bring, "the tool's file of answers, or a folder of them", "run the tool first")
        return ", ".join(sorted(answer_files(Path(bring), options.tool)))

    yield Input("handoff.bring", bring, look)
    for name in config.evaluate.benchmarks if options.scorer == "ours" else ():
        yield opening.benchmark_of(config, name)


def _verify(config: Config) -> Iterator[Input]:
    from vold_nemo.evaluation.verify import dataset_of, first_answers

    try:
        dataset = dataset_of(config)
    except ConfigError as error:
        yield refused(error)
        return

    def look() -> str:
        if not Path(local_folder(dataset.path, None, "dataset")).expanduser().exists():
            mend = "correct the path, or make it first"
            raise missing("verify.answers", dataset.path, "a file, a folder, or a hub id in the local cache", mend)
        rejected = Rejected(None, config.data.max_rejected_share)
        return rows_said(count_rows(dataset), first_answers(config, rejected, FIRST_ROWS), rejected)

    yield Input("verify.answers", dataset.path, look)


def _plan(config: Config) -> Iterator[Input]:
    """What the chain begins with; what its own stages make is no input of it."""
    for key, path in (("student.path", config.student.path), ("teacher.path", config.teacher.path)):
        yield _shapes(config, key, path)
    for name, one in config.teachers.items():
        yield _shapes(config, f"teachers.{name}.path", one.path)
    yield opening.rows_of(config, "data.prompts", config.data.prompts, opening.asked(config, learned=True))
    if config.data.trace_prompts is not None:
        own = config.traces.engine == "dataset"
        wanted = Wanted(answers=False, responses=own)
        yield opening.rows_of(config, "data.trace_prompts", config.data.trace_prompts, lambda: wanted)


def _shapes(config: Config, key: str, path: str) -> Input:
    """A model whose published shapes will do."""

    def look() -> str:
        if published.is_published(path) and not Path(path).is_dir():
            raise missing_model(key, path, config.miniature.path)
        return opening.look_at_model(config, key, path)

    return Input(key, path, look)


def _rehearse(config: Config) -> Iterator[Input]:
    for one in itertools.islice(_plan(config), 2 + len(config.teachers)):
        if one.key == "student.path" or config.objective.kl.enabled:
            yield one


def _teacher_drift(config: Config) -> Iterator[Input]:
    yield opening.traces("drift.traces", config.drift.traces)
    yield opening.model(config, "teacher.path", config.teacher.path)
    yield opening.model(config, "vold.start", config.vold.start)


def _prefetch(config: Config) -> Iterator[Input]:
    from vold_nemo.planning.prefetch import locate, needs

    if config.prefetch.check:
        yield _lock(config)
    for need in needs(config):

        def look(need=need) -> str:
            try:
                return f"{need.kind}, in {locate(need, offline=True)}"
            except ConfigError as error:
                raise Pending.of(error) from error

        yield Input(need.key, need.path, look)


def _lock(config: Config, spared: str = "") -> Input:
    key, file = "prefetch.lock", Path(config.prefetch.lock)

    def look() -> str:
        if not file.is_file():
            raise missing(key, file, "a lock file that exists", "run recipes/prefetch.py first, where there is internet")
        held = under(key, lambda: read_object(file, "run recipes/prefetch.py again")).get("needs")
        if not isinstance(held, list):
            raise ConfigError(key, str(file), "a lock file as recipes/prefetch.py writes it", "run recipes/prefetch.py again")
        return f"{len(held)} models and sets"

    return Input(key, str(file), look, spared)


def _chain(config: Config) -> Iterator[Input]:
    yield from _plan(config)
    yield _lock(config, "nothing is compared with it")


def _stage_weights(config: Config) -> Iterator[Input]:
    from vold_nemo.config import staged
    from vold_nemo.planning.staging import models

    if config.cluster.launch.stage is None:
        mend = "give cluster.launch.stage=FOLDER: /local/scratch/$SLURM_JOB_ID, $TMPDIR"
        yield refused(ConfigError(staged.KEY, None, "a folder on the node's own disk", mend))
    for key, path, _ in models(config, config.staging.verb):
        yield opening.model(config, key, path)


def _nothing(config: Config) -> Iterator[Input]:
    return iter(())


INPUTS: dict[str, Callable[[Config], Iterator[Input]]] = {
    "prepare_miniature": _nothing, "prepare_data": _prepare_data, "inspect_data": _inspect_data,
    "generate_traces": _generate_traces, "sft": _sft,
    "vold": _vold, "export_hf": _export_hf, "evaluate": _evaluate, "compare": _compare, "handoff": _handoff,
    "reproduce": _nothing, "report": _report, "plan": _plan, "rehearse": _rehearse, "teacher_drift": _teacher_drift,
    "prefetch": _prefetch, "verify": _verify, "stage_weights": _stage_weights, "doctor": _nothing, "chain": _chain,
}  # fmt: skip
