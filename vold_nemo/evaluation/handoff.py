"""The same checkpoint under lmms-eval or VLMEvalKit, and their answers back in our tables.

``write_script`` writes what they are started with; ``bring_in`` turns their files of answers into ``answers/<arm>.jsonl`` and
``results.json``, which recipes/compare.py and recipes/report.py read like any others.  Both tools are installed by their users,
in an environment of their own: lmms-eval pins another math-verify, VLMEvalKit other versions of much.

File formats as read: lmms-eval ``*_samples_<task>.jsonl`` (lmms_eval/loggers/evaluation_tracker.py, ``--log_samples``);
VLMEvalKit ``<model>_<dataset>[_<judge>].tsv|json`` (vlmeval/dataset, with PRED_FORMAT=tsv and EVAL_FORMAT=json or tsv).
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.json_files import read_object
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.data.prompts import question_text
from vold_nemo.data.rejected import Rejected
from vold_nemo.evaluation.answer_row import AnswerRow, as_lines, read_answers
from vold_nemo.evaluation.benchmarks.load import load_benchmark
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.evaluation.records import read_json
from vold_nemo.evaluation.results import Results, Weights, build_results

# Our name -> theirs.  lmms-eval's geometry3k asks other questions (four choices), so it has no entry.
LMMS_EVAL = {
    "mmmu_pro_standard": "mmmu_pro_standard_cot", "mmmu_pro_vision": "mmmu_pro_vision_cot", "mathvision": "mathvision_test",
    "mathvista": "mathvista_testmini_cot", "logicvista": "logicvista_reasoning", "mathverse": "mathverse_testmini",
    "mmstar": "mmstar", "dynamath": "dynamath_reasoning", "wemath": "wemath_testmini_reasoning",
    "mmmu": "mmmu_val", "mme": "mme",
}  # fmt: skip
VLMEVALKIT = {
    "mmmu_pro_standard": "MMMU_Pro_10c_COT", "mmmu_pro_vision": "MMMU_Pro_V_COT", "mathvision": "MathVision",
    "mathvista": "MathVista_MINI", "logicvista": "LogicVista", "mathverse": "MathVerse_MINI_Vision_Only_cot",
    "mmstar": "MMStar", "dynamath": "DynaMath", "wemath": "WeMath_COT", "mmmu": "MMMU_DEV_VAL", "mme": "MME",
}  # fmt: skip
MODELS = {  # model_type: what the tool calls the class that loads it (VLMEvalKit's of Qwen3-VL samples by default: not offered)
    "lmms_eval": {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl"},
    "vlmevalkit": {"qwen2_5_vl": "Qwen2VLChat"},
}
TOOLS = {"lmms_eval": LMMS_EVAL, "vlmevalkit": VLMEVALKIT}
_PIXELS = {"min_pixels": 1280 * 28 * 28, "max_pixels": 16384 * 28 * 28}  # VLMEvalKit's own for Qwen2.5-VL-3B-Instruct


@dataclass(frozen=True)
class Answer:
    """One of their answers: ``right`` is their verdict, None where their file holds none."""

    index: str
    text: str
    truth: str
    right: float | None
    question: str = ""


def write_script(config: Config) -> Path:
    """``<handoff.path>/<tool>.sh`` (and VLMEvalKit's JSON): the command for ``handoff.model`` on ``evaluate.benchmarks``."""
    options, names = config.handoff, _names(config)
    if not (Path(options.model or "") / "config.json").is_file():
        raise ConfigError(
            "handoff.model", options.model, "an exported checkpoint folder", "run recipes/export_hf.py first"
        )
    about = read_object(Path(options.model) / "config.json", "export the checkpoint again")
    known, family = MODELS[options.tool], about.get("model_type")
    if family not in known:
        mend = "give a checkpoint of these families, or another handoff.tool"
        raise ConfigError(f"handoff.model: {options.model}: model_type", family, " | ".join(known), mend)
    folder = Path(options.path).resolve()
    with writing("handoff.path", folder):
        folder.mkdir(parents=True, exist_ok=True)
    model, limit = str(Path(options.model).resolve()), config.evaluate.limit
    lines = ["#!/usr/bin/env bash", "# Run in the tool's own environment.", "set -euo pipefail"]
    if options.tool == "lmms_eval":
        tasks = ",".join(LMMS_EVAL[name] for name in names)
        words = [
            "python",
            "-m",
            "lmms_eval",
            "--model",
            known[family],
            "--model_args",
            f"pretrained={model}",
            "--tasks",
            tasks,
            "--batch_size",
            "1",
            "--log_samples",
            "--output_path",
            str(folder / "lmms_eval"),
            "--gen_kwargs",
            f"max_new_tokens={config.evaluate.max_tokens},temperature=0",
        ]
        words += ["--limit", str(limit)] if limit is not None else []
    else:
        settings = {
            "class": known[family],
            "model_path": model,
            "max_new_tokens": config.evaluate.max_tokens,
            **_PIXELS,
            "use_custom_prompt": False,
            "system_prompt": config.data.system_prompt,
        }
        file = folder / "vlmevalkit.json"
        data = {VLMEVALKIT[name]: {} for name in names}
        with writing("handoff.path", folder):
            replace_text(file, json.dumps({"model": {options.arm: settings}, "data": data}, indent=1) + "\n")
        lines.append("export PRED_FORMAT=tsv EVAL_FORMAT=json  # the files that recipes/handoff.py brings back in")
        words = ["python", "run.py", "--config", str(file), "--work-dir", str(folder / "vlmevalkit")]
    script = folder / f"{options.tool}.sh"
    with writing("handoff.path", folder):
        replace_text(script, "\n".join([*lines, " ".join(shlex.quote(word) for word in words), ""]))
        script.chmod(0o755)
    return script


def _names(config: Config) -> list[str]:
    known = TOOLS[config.handoff.tool]
    names = config.evaluate.benchmarks or list(known)
    for name in names:
        if name not in known:
            raise ConfigError(
                "evaluate.benchmarks", name, " | ".join(known), f"{config.handoff.tool} has no such benchmark"
            )
    return names


def bring_in(config: Config) -> Results:
    """Read ``handoff.bring`` (a file or a folder of them), write the arm's answers and ``results.json`` under ``handoff.path``.

    With ``handoff.scorer=ours`` their responses are scored by our rules, else by their verdicts.  Questions are matched with
    the benchmark's published file by their place, and only where the truth is the same; without the file they keep their index.
    """
    options = config.handoff
    files = answer_files(Path(options.bring), options.tool)
    rows, used = [], {}
    for name, file in files.items():
        answers = (read_lmms_eval if options.tool == "lmms_eval" else read_vlmevalkit)(file)
        questions = _questions(config, name)
        rows += _rows(config, name, answers, questions)
        used[name] = str(file)
    arm, folder = options.arm, Path(options.path)
    with writing("handoff.path", folder):
        replace_text(folder / "answers" / f"{arm}.jsonl", as_lines(rows))
    arms = {file.stem: read_answers(file) for file in sorted((folder / "answers").glob("*.jsonl"))}
    models = {name: Weights(options.bring if name == arm else "", f"as {options.tool} read them") for name in arms}
    results = build_results(arms, models, {"engine": options.tool, "scorer": options.scorer, "questions": used})
    with writing("handoff.path", folder):
        results.write(folder / "results.json")
    return results


def answer_files(path: Path, tool: str) -> dict[str, Path]:
    """Benchmark -> the newest of the tool's files for it; of VLMEvalKit's the judged ones before the plain predictions.

    Raises:
        ConfigError: there is none.
    """
    candidates = [path] if path.is_file() else sorted(path.rglob("*"), key=lambda file: file.stat().st_mtime)
    found: dict[str, tuple[bool, Path]] = {}
    for file in candidates:
        for ours, theirs in TOOLS[tool].items():
            if tool == "lmms_eval" and re.search(rf"(?:^|_)samples_{re.escape(theirs)}\.jsonl$", file.name):
                found[ours] = (True, file)
            elif tool == "vlmevalkit" and (
                match := re.search(rf"_{re.escape(theirs)}(_[^/]*)?\.(?:tsv|json)$", file.name)
            ):
                judged = match[1] is not None
                if re.search(r"_(?:score|acc|extract|prev|structs)$", match[1] or ""):
                    continue
                if judged or ours not in found or not found[ours][0]:
                    found[ours] = (judged, file)
    if not found:
        form = "*_samples_<task>.jsonl" if tool == "lmms_eval" else "<model>_<dataset>[_<judge>].tsv or .json"
        raise ConfigError("handoff.bring", str(path), f"{form}, or a folder of them", "give the tool's output folder")
    return {name: file for name, (_, file) in found.items()}


def read_lmms_eval(file: Path) -> list[Answer]:
    answers = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        sample = read_json(line, where)
        index = _need(sample, "doc_id", where)
        response = sample.get("resps", sample.get("filtered_resps", ""))
        while isinstance(response, list):
            response = response[0] if response else ""
        answers.append(
            Answer(str(index), str(response), str(sample.get("target", "")), _their_verdict(sample))
        )
    return answers


def _need(row: Any, key: str, where: str) -> Any:
    if not isinstance(row, dict) or row.get(key) is None:
        raise ConfigError(f"{where}: {key}", None, "the tool's own answers", "the key is missing: give a whole file of theirs")
    return row[key]


def _their_verdict(sample: dict[str, Any]) -> float | None:
    """The metric of whichever task it is (lmms_eval/tasks/*/utils.py, process_results)."""
    for name in (
        "acc_score",
        "exact_match",
        "gpt_eval_score",
        "llm_as_judge_eval",
        "mathvision_standard_eval",
        "mmmu_acc",
        "average",
        "dynamath_average",
        "mme_perception_score",
        "mme_cognition_score",
    ):
        value = sample.get(name)
        if isinstance(value, bool | int | float):
            return float(value)
        if isinstance(value, dict):
            if "parsed_pred" in value:
                return float(value["parsed_pred"] == value.get("answer"))
            for key in ("true_false", "score", "acc"):
                if isinstance(value.get(key), bool | int | float):
                    return float(value[key])
            if value.get("scores"):
                return float(value["scores"][0])
    return None


def read_vlmevalkit(file: Path) -> list[Answer]:
    if file.suffix == ".tsv":
        csv.field_size_limit(sys.maxsize)  # images in base64
        with file.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets write a byte order mark
            table = list(csv.DictReader(stream, delimiter="\t"))
    else:
        content = read_json(file.read_bytes(), str(file))
        # pandas writes a list of rows, or columns of {row: value}
        table = (
            content
            if isinstance(content, list)
            else [{name: column[row] for name, column in content.items()} for row in next(iter(content.values()))]
        )
    answers = []
    for number, row in enumerate(table, start=1):
        where = f"{file}, answer {number}"
        index = _need(row, "index", where)
        verdict = next(
            (row[name] for name in ("hit", "correct", "verifier_match") if row.get(name) not in (None, "")), None
        )
        try:
            right = None if verdict is None else float({"true": 1, "false": 0}.get(str(verdict).casefold(), verdict))
        except ValueError:
            raise ConfigError(where, verdict, "true, false or a number", "give a file that the tool judged") from None
        truth = row.get("answer") if row.get("answer") is not None else ""
        answers.append(
            Answer(
                str(index), str(row.get("prediction") or ""), str(truth), right, str(row.get("question") or "")
            )
        )
    return answers


def _questions(config: Config, name: str) -> list[Question]:
    """The published questions in order; [] where their files are not here."""
    try:
        return load_benchmark(
            name,
            path=config.evaluate.benchmark_paths.get(name),
            limit=None,
            system_prompt=None,
            rejected=Rejected(None, 1.0),
        )
    except ConfigError:
        if config.handoff.scorer == "ours":
            raise
        return []


def _rows(config: Config, name: str, answers: list[Answer], questions: list[Question]) -> list[AnswerRow]:
    from vold_nemo.evaluation.scorers import RULES, score

    pairs = [(answer, _match(answer, questions)) for answer in answers]
    ours = config.handoff.scorer == "ours"
    known = [(answer, question) for answer, question in pairs if question is not None]
    if ours and len(known) < len(pairs):
        raise ConfigError(
            f"handoff.bring: {name}",
            f"{len(pairs) - len(known)} answers to other questions",
            "the published questions",
            "set handoff.scorer=theirs, or give the file that they were asked from in evaluate.benchmark_paths",
        )
    verdicts = iter(score([answer.text for answer, _ in known], [q for _, q in known], config.reward) if ours else ())
    rows = []
    for answer, question in pairs:
        verdict = next(verdicts) if ours else None
        if verdict is None and answer.right is None:
            raise ConfigError(
                f"handoff.bring: {name}",
                answer.index,
                "answers with a verdict",
                "judge them there, or set handoff.scorer=ours",
            )
        facts: dict[str, Any] = (question.facts() if question else {}) | ({"rules": RULES} if verdict else {})
        rows.append(AnswerRow(
            set=name, id=question.id if question else answer.index, mode="greedy", sample=0,
            question=question_text(question) if question else answer.question,
            truth=question.answer if question else answer.truth, text=answer.text,
            extracted=verdict.extracted if verdict else answer.text[-40:] or None,
            reward=verdict.reward if verdict else answer.right,
            reason=verdict.reason if verdict else f"by {config.handoff.tool}", finish="stop", tokens=0, **facts,
        ))  # fmt: skip
    return rows


def _match(answer: Answer, questions: list[Question]) -> Question | None:
    """The question of that id, or else in that place, if its truth is the same."""

    def same(question: Question) -> bool:
        theirs = answer.truth.strip()
        letters = "".join(sorted(re.findall(r"[A-Z]", theirs.upper()))) if question.scorer == "letters" else theirs
        texts = {question.answer, *_option(question)}
        return letters in texts or theirs in texts

    by_id = [question for question in questions if question.id == answer.index and same(question)]
    if by_id:
        return by_id[0]
    if answer.index.isdecimal():
        for place in (int(answer.index), int(answer.index) - 1):
            if 0 <= place < len(questions) and same(questions[place]):
                return questions[place]
    return None


def _option(question: Question) -> list[str]:
    """The text of the true option: MathVista's key is the text, ours its letter."""
    place = question.allowed().find(question.answer) if question.scorer == "choice" else -1
    return [question.options[place]] if 0 <= place < len(question.options) else []
