"""Training prompts without duplicates and without the questions of evaluation sets, and a report of what went.

    <prepare.path>/prompts.jsonl, trace_prompts.jsonl   columns id, prompt, answer, domain, source, verifier, teacher (and
                                                        response, with traces.engine=dataset); .parquet, if there are images
                   report.json                          counts by set, source, reason and evaluation set
                   rejected.jsonl                       every row that is not there, with its reason
                   contaminated.jsonl                   of these, those that give an evaluation question away: both texts,
                                                        and where the words are that they share (pages/contamination.py)
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError, DatasetConfig
from vold_nemo.config.writing import replace_text
from vold_nemo.data.messages import RowError, read_messages
from vold_nemo.data.overlap import EvaluationTable, Match, normalised, question_key, question_text, said_by_user
from vold_nemo.data.prompts import Prompt, Wanted, read_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rows import pick, read_rows

CONTAMINATED = "contaminated.jsonl"
SHOWN = 20  # evaluation questions named in the report, those that most prompts met


@dataclass
class Left:
    """What became of one set's rows."""

    path: str
    rows: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # reason -> rows
    duplicates: int = 0
    conflicting: int = 0  # of these, with another answer than the first: one of the two is wrong
    contaminated: dict[str, dict[str, int]] = field(default_factory=dict)  # evaluation set -> exact, 8-gram, ... -> rows
    phrases: int = 0  # runs of words in so many of its prompts that they were not compared
    kept: int = 0
    sources: dict[str, dict[str, int]] = field(default_factory=dict)  # source -> read, kept
    met: list[dict[str, Any]] = field(default_factory=list)  # evaluation questions that most rows met


def evaluation_sets(config: Config) -> dict[str, DatasetConfig]:
    """Name: set, of everything that this configuration evaluates on."""
    validation = config.vold.validation
    own = {"validation": validation.data, "validation_text": validation.text}
    own |= {"text": config.evaluate.text, "image": config.evaluate.image}
    return {name: dataset for name, dataset in {**own, **config.prepare.against}.items() if dataset is not None}


def training_sets(config: Config) -> dict[str, DatasetConfig]:
    """``prompts`` and ``trace_prompts``, whichever ``prepare.sets`` names and the configuration has.

    Raises:
        ConfigError: nothing to do, or a set that would be read from where it is written to.
    """
    found = {name: getattr(config.data, name) for name in config.prepare.sets if getattr(config.data, name) is not None}
    if not found:
        raise ConfigError("prepare.sets", config.prepare.sets, "a set that is configured", "give data.prompts.path")
    for name, dataset in found.items():
        if Path(dataset.path).parent.resolve() == Path(config.prepare.path).resolve():
            raise ConfigError(
                f"data.{name}.path", dataset.path, "the set as it was published", "give another data=, or prepare.path"
            )
    return found


def prepare(config: Config) -> dict[str, Any]:
    """Read, compare, write; returns what ``report.json`` holds.

    Raises:
        ConfigError: a set that cannot be read, or more bad rows than ``data.max_rejected_share``.
    """
    from vold_nemo.rewards.answer_keys import refusal

    options, folder = config.prepare, Path(config.prepare.path)
    sets = training_sets(config)
    folder_rejected = Rejected(folder / "rejected.jsonl", config.data.max_rejected_share, key="prepare.path")
    table = EvaluationTable(options.ngram, options.common, options.share, options.numbers)
    for name, dataset in evaluation_sets(config).items():
        table.add(name, read_prompts(dataset, folder_rejected, Wanted(answers=False)))
    table.close()
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "evaluation": {name: asdict(found) for name, found in table.sets.items()},
        "ngram": options.ngram, "common": options.common, "share": options.share, "numbers": options.numbers,
        "runs": table.runs, "phrases": table.phrases, "sets": {},
    }  # fmt: skip
    pairs = folder / CONTAMINATED
    pairs.unlink(missing_ok=True)
    for name, dataset in sets.items():
        traces = name == "trace_prompts"
        wanted = Wanted(
            answers=not traces, responses=traces and config.traces.engine == "dataset",
            refuse=None if traces else refusal(config.reward), verifier=config.reward.verifier,
            listed=config.reward.verifiers,
        )  # fmt: skip
        left = Left(str(dataset.path), phrases=table.learn_phrases(_texts(dataset)) if table.runs else 0)
        clean = _clean(dataset, wanted, table, folder_rejected, left, name, pairs)
        written = _write(clean, folder / name, images=dataset.fields.image is not None, responses=wanted.responses)
        left.bad = dict(folder_rejected.reasons.get(left.path, {}))
        left.rows += sum(left.bad.values())
        report["sets"][name] = {**asdict(left), "written": str(written)}
    replace_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def _clean(
    dataset: DatasetConfig, wanted: Wanted, table: EvaluationTable, rejected: Rejected, left: Left, name: str, pairs: Path
) -> Iterable[Prompt]:
    """The rows that stay; ``left`` is filled on the way."""
    from tqdm import tqdm

    from vold_nemo.data.rows import count_rows

    seen: dict[bytes, tuple[str, str | None]] = {}  # question -> id and answer of its first row
    met: Counter[tuple[str, str, str]] = Counter()
    with tqdm(total=count_rows(dataset), desc=name, unit="row", unit_scale=True) as bar:
        for prompt in read_prompts(dataset, rejected, wanted):
            bar.update()
            left.rows += 1
            source = prompt.source = prompt.source or left.path
            counts = left.sources.setdefault(source, {"read": 0, "kept": 0})
            counts["read"] += 1
            text = question_text(prompt)
            question = question_key(prompt, text)
            key = question + prompt.response.strip().encode("utf-8", "replace") if prompt.response is not None else question
            if key in seen:
                first, answer = seen[key]
                left.duplicates += 1
                left.conflicting += None not in (answer, prompt.answer) and normalised(answer) != normalised(prompt.answer)
                rejected.add(prompt.id, f"duplicate of {first}", text, left.path, bad=False)
                continue
            seen[key] = (prompt.id, prompt.answer)
            if (match := table.match(text, question)) is not None:
                kinds = left.contaminated.setdefault(match.set, {})
                kinds[match.kind] = kinds.get(match.kind, 0) + 1
                met[match.set, match.id, match.question[:200]] += 1
                reason = f"{match.kind} match with {match.set} {match.id}"
                if match.kind != "exact":
                    reason += f" ({match.share:.0%} of its words): {match.words[:200]}"
                _keep_pair(pairs, name, prompt.id, text, match)
                rejected.add(prompt.id, reason, text, left.path, bad=False)
                continue
            left.kept += 1
            counts["kept"] += 1
            yield prompt
    left.met = [
        {"set": name, "id": number, "question": question, "rows": rows}
        for (name, number, question), rows in met.most_common(SHOWN)
    ]


def _texts(dataset: DatasetConfig) -> Iterator[str]:
    """What the rows ask: a first reading, for the phrases among them, that opens no picture and judges no row."""
    fields, unseen = dataset.fields, Rejected(None, 1.0)
    for _, row, _ in read_rows(dataset, unseen):
        shown = pick(row, fields.image) if fields.image is not None else None
        images = len(shown) if isinstance(shown, list) else int(shown is not None)
        with contextlib.suppress(RowError):
            messages, _ = read_messages(pick(row, fields.prompt), images, column=fields.image is not None)
            yield said_by_user(messages)


def _keep_pair(file: Path, name: str, row: str, text: str, match: Match) -> None:
    line = {
        "set": name, "id": row, "kind": match.kind, "evaluation": match.set, "question_id": match.id,
        "share": round(match.share, 4), "prompt": text, "question": match.question,
        "in_prompt": match.in_prompt, "in_question": match.in_question,
    }  # fmt: skip
    with file.open("a", encoding="ascii") as lines:  # ASCII escapes: a text may hold lone surrogates
        lines.write(json.dumps(line) + "\n")


def _write(prompts: Iterable[Prompt], path: Path, *, images: bool, responses: bool) -> Path:
    """``path`` with a suffix, whole or not at all."""
    target = path.with_suffix(".parquet" if images else ".jsonl")
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    rows = (_row(prompt, images, responses) for prompt in prompts)
    try:
        if images:
            _write_parquet(rows, aside)
        else:
            with aside.open("w", encoding="ascii") as file:  # ASCII escapes: rows may hold lone surrogates
                file.writelines(json.dumps(row) + "\n" for row in rows)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _row(prompt: Prompt, images: bool, responses: bool) -> dict[str, Any]:
    row = {"id": prompt.id, "prompt": prompt.messages, "answer": prompt.answer, "domain": prompt.domain}
    row |= {"source": prompt.source, "verifier": prompt.verifier, "teacher": prompt.teacher}
    if responses:
        row["response"] = prompt.response
    if images:  # parquet wants one type: every content is a list of parts
        row["prompt"] = [{"role": m["role"], "content": _parts(m["content"])} for m in prompt.messages]
        row["images"] = [
            {"bytes": image if isinstance(image, bytes) else Path(image).read_bytes(), "path": None} for image in prompt.images
        ]
    return row


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{"type": part["type"], "text": part.get("text")} for part in parts]


def _write_parquet(rows: Iterable[dict[str, Any]], path: Path) -> None:
    import itertools

    import datasets
    import pyarrow.parquet

    text = datasets.Value("string")
    plain = dict.fromkeys(("id", "answer", "domain", "source", "verifier", "teacher"), text)
    message = {"role": text, "content": [{"type": text, "text": text}]}
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))
    if first and "response" in first[0]:
        plain["response"] = text
    features = datasets.Features({**plain, "prompt": [message], "images": datasets.List(datasets.Image())})
    rows = itertools.chain(first, rows)
    with pyarrow.parquet.ParquetWriter(path, features.arrow_schema) as writer:
        while batch := list(itertools.islice(rows, 256)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=features.arrow_schema))


def summary(report: dict[str, Any]) -> str:
    """For a terminal: what went, set by set."""
    lines = []
    for name, found in report["evaluation"].items():
        short = f", {found['short']:,} of them too short for {report['ngram']}-grams" if found["short"] else ""
        lines.append(f"against {name}: {found['questions']:,} questions{short}")
    if lines:
        lines.append(f"{report['runs']:,} {report['ngram']}-grams; {report['phrases']:,} in many of them were not compared")
    else:
        lines = ["no evaluation set is configured: nothing was compared (prepare.against, evaluate.*, vold.validation.data)"]
    for name, left in report["sets"].items():
        bad = sum(left["bad"].values())
        lines += ["", f"{name}: {left['rows']:,} rows of {left['path']}, {left['kept']:,} kept"]
        lines.append(f"  {bad:,} bad" + (f" ({', '.join(f'{k} {v:,}' for k, v in left['bad'].items())})" if bad else ""))
        conflict = f" ({left['conflicting']:,} with another answer)" if left["conflicting"] else ""
        lines.append(f"  {left['duplicates']:,} duplicates{conflict}")
        if left["phrases"]:
            lines.append(f"  {left['phrases']:,} {report['ngram']}-grams are phrases of its prompts and did not count")
        for evaluation, kinds in left["contaminated"].items():
            lines.append(f"  {sum(kinds.values()):,} of {evaluation}: {', '.join(f'{k} {v:,}' for k, v in kinds.items())}")
        if len(left["sources"]) > 1:
            lines += [f"  {source}: {n['kept']:,} of {n['read']:,}" for source, n in sorted(left["sources"].items())]
        lines.append(f"  written: {left['written']}")
    return "\n".join(lines)
