"""The example that ``dry_run=true`` and recipes/plan.py show: one conversation as student and teacher read it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError, DatasetConfig
from vold_nemo.config.sources import local_folder

FIRST_ROWS = 50  # of a set, among which a usable one is looked for


def example(config: Config, verb: str) -> list[str]:
    """Lines for ``recipes/<verb>.py``: a trace for stage 1 (its prompt, if none is written yet), a prompt for stage 2.

    What is not on this machine is said and stops nothing.
    """
    try:
        return ["", *_example(config, verb)]
    except ConfigError as error:
        return ["", f"example  not shown: {error.key} = {error.value!r}"]


def print_example(verb: str):
    """``example`` as the ``plan`` of a recipe."""

    def show(config: Config) -> None:
        print("\n".join(example(config, verb)))

    return show


def _example(config: Config, verb: str) -> Iterator[str]:
    started = verb == "vold" and Path(config.vold.start).is_dir()
    folders = (config.vold.start if started else config.student.path, config.teacher.path)
    for path in folders:  # before transformers is imported: a plan without checkpoints takes a second
        if not Path(path).is_dir():
            raise ConfigError("model path", path, "a checkpoint folder", "fetch it")
    from vold_nemo.data.templates import load_tokenizer
    from vold_nemo.data.token_alignment import View, side_by_side

    student, teacher = (load_tokenizer(path) for path in folders)
    trace = _first_trace(config) if verb in ("sft", "plan") else None
    if trace is not None:
        name, messages, response = f"trace {trace['id']}/{trace['sample']}", trace["messages"], trace["response_ids"]
    else:
        second = verb == "vold" or (verb == "plan" and config.data.trace_prompts is None)
        dataset = config.data.prompts if second or config.data.trace_prompts is None else config.data.trace_prompts
        prompt = first_prompt(config, dataset, answers=second)
        name, messages, response = f"prompt {prompt.id} of {dataset.path}", prompt.messages, []
    views = (
        View.of(student, messages, response),
        View.of(teacher, messages, response, thinking=config.teacher.thinking),
    )
    yield f"example  {name}, each side under its own chat template"
    if response:
        yield f"         {len(response)} response ids, the same on both sides; > is trained on"
    elif verb == "vold":
        yield "         the response is the student's; the teacher scores the student's own ids (left), template and all"
    else:
        yield "         the teacher answers the right side; the student learns the answer's ids behind the left one"
    yield from side_by_side(*views)


def _first_trace(config: Config) -> dict[str, Any] | None:
    from vold_nemo.data.traces import trace_files

    try:
        files = trace_files(config.traces.path)
    except ConfigError:  # none yet, or not all shards: a prompt is shown
        return None
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and row.get("response_ids") and row.get("messages"):
                    return row
    return None


def first_prompt(config: Config, dataset: DatasetConfig, *, answers: bool):
    from vold_nemo.data.prompts import Wanted, read_prompts
    from vold_nemo.data.rejected import Rejected

    if not Path(local_folder(dataset.path, dataset.revision, "dataset")).exists():  # `datasets` would ask the network
        raise ConfigError("data path", dataset.path, "a file, a folder, or a hub id in the local cache", "fetch it")
    limited = dataclasses.replace(dataset, limit=min(dataset.limit or FIRST_ROWS, FIRST_ROWS))
    wanted = Wanted(answers=answers, system_prompt=config.data.system_prompt, instruction=config.data.instruction)
    for prompt in read_prompts(limited, Rejected(None, 1.0), wanted):
        return prompt
    raise ConfigError("data path", dataset.path, "at least one usable row", "see rejected.jsonl")
