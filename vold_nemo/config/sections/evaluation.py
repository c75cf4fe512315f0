"""Checkpoints answer questions, and what is made of the answers."""

from __future__ import annotations

from dataclasses import dataclass

from vold_nemo.config.fields import ABOVE_ZERO, COUNT, LENGTH, POSITIVE, key, section
from vold_nemo.config.sections.data import DatasetConfig
from vold_nemo.config.sections.rollout import JudgeConfig


@dataclass
class ExportConfig:
    """recipes/export_hf.py: a run's newest weights as an ordinary Hugging Face checkpoint."""

    run: str = key("${sft.run}", "run folder under `outputs`, or a .nemo file")
    step: int | None = key(None, "which of the run's checkpoints; null = the newest, which must be whole", bound=POSITIVE)
    source: str = key("${student.path}", "where config, tokenizer, processor and vision tower come from")
    path: str | None = key(None, "null = <outputs>/<run>/hf")
    max_shard_bytes: int = key(5_000_000_000, "of one safetensors file", bound=POSITIVE)
    verify: bool = key(False, "load with transformers and compare log-probs in fp32: holds the student whole, twice")
    results: str = key("${evaluate.path}/results.json", "scores for the model card, where an arm has this export's weights")
    push: str | None = key(None, "user/name on the Hugging Face hub; the token is HF_TOKEN of the environment")
    private: bool = key(True, "a repository that export.push makes is private")


@dataclass
class EvaluateConfig:
    """recipes/evaluate.py: accuracy of checkpoints."""

    models: dict[str, str] = key({}, "arm: checkpoint folder")
    engine: str = key("transformers", "who decodes; vllm: one a process, on one device, with the rest of rollout.vllm",
                      choices=("transformers", "vllm"))  # fmt: skip
    benchmarks: list[str] = key([], "mathvista, mmmu_pro_vision, ...: docs/benchmarks.md")
    benchmark_paths: dict[str, str] = key({}, "benchmark: folder or hub id in place of the pinned one")
    text: DatasetConfig | None = key(None, "text questions of your own")
    image: DatasetConfig | None = key(None, "image questions of your own")
    limit: int | None = key(None, "only the first questions of each benchmark", bound=POSITIVE)
    max_tokens: int = key(1024, "of an answer", bound=POSITIVE)
    batch: int = key(64, "questions answered at a time", bound=POSITIVE)
    samples: int = key(0, "also this many samples a question at `temperature`: avg@k, pass@k (0 = greedy only)", bound=COUNT)
    temperature: float = key(1.0, "of the samples", bound=ABOVE_ZERO)
    shard: int = key(0, "this job's part of `shards`; each rank takes a part of it", bound=COUNT)
    shards: int = key(1, "jobs that share the questions", bound=POSITIVE)
    judge: JudgeConfig = section(JudgeConfig)
    path: str = key("${outputs}/${name}/evaluation", "results.json, answers/<arm>.jsonl")


@dataclass
class CompareConfig:
    """recipes/compare.py: evaluations side by side, question by question."""

    results: dict[str, str] = key({}, "name: folder of an evaluation; the last model is asked about")
    examples: int = key(6, "questions shown of those won, and of those lost", bound=COUNT)
    path: str = key("${outputs}/${name}/comparison", "compare.json and compare.html")


@dataclass
class HandoffConfig:
    """recipes/handoff.py: a checkpoint to lmms-eval or VLMEvalKit, and their answers back."""

    tool: str = key("lmms_eval", "whose script, or whose answers", choices=("lmms_eval", "vlmevalkit"))
    model: str | None = key(None, "exported checkpoint to write a script for")
    bring: str | None = key(None, "the tool's file of answers, or a folder of them, to read; null = write the script")
    arm: str = key("model", "name of the model in scripts and tables")
    scorer: str = key("theirs", "whose verdicts are kept", choices=("theirs", "ours"))
    path: str = key("${outputs}/${name}/handoff", "the script, or results.json and answers/<arm>.jsonl")


@dataclass
class AnswerFieldsConfig:
    """Which column of a file of answers is what; the defaults are those of `rollouts/` and `answers/` files."""

    response: str = key("text", "the answer that is judged")
    truth: str = key("truth", "the true answer")
    id: str | None = key("id", "rows without one are named by their number")
    verifier: str | None = key(None, "name of the row's verifier; null = reward.verifier")


@dataclass
class VerifyConfig:
    """recipes/verify.py: judge the answers in a file."""

    answers: str | None = key(None, "*.jsonl, *.json or *.parquet, a folder of them, or a hub id in the local cache")
    split: str = key("train", "of a hub set; in a folder, how the names of its files begin")
    limit: int | None = key(None, "only the first rows", bound=POSITIVE)
    fields: AnswerFieldsConfig = section(AnswerFieldsConfig)
    path: str = key("${outputs}/${name}/verify", "verdicts.jsonl, rejected.jsonl, diagnosis.json")


@dataclass
class DriftConfig:
    """recipes/teacher_drift.py: the teacher in FP8 against the same in bf16."""

    traces: str = key("${traces.path}", "what both score")
    limit: int = key(64, "only the first traces", bound=POSITIVE)
    max_length: int = key(4096, "prompt + response; longer traces are left out", bound=LENGTH)
    worst: int = key(20, "tokens shown", bound=COUNT)
    path: str = key("${outputs}/${name}/drift", "drift.json and drift.html")


@dataclass
class ReportConfig:
    """recipes/report.py: one self-contained page."""

    path: str = key("${outputs}/${name}/report.html", "the page")
    results: str = key("${evaluate.path}/results.json", "of recipes/evaluate.py")
    runs: dict[str, str] = key({}, "arm: run folder under `outputs`")
    examples: int = key(4, "image questions shown with each model's answer", bound=COUNT)
    differences: list[str] = key([], "settings that differ from the paper's")
    crutches: list[str] = key([], "what the miniature leans on")


@dataclass
class ReproduceConfig:
    """recipes/reproduce.py: a table or figure of the paper beside ours."""

    target: str = key("table1", "which of the paper's", choices=(
        "table1", "table2", "table3", "table5", "table6", "figure3", "figure4", "figure5", "figure6",
    ))  # fmt: skip
    scale: str = key("miniature", "experiment miniature or paper_3b, if none is given", choices=("miniature", "paper"))
    missing: str = key("list", "what to do about arms that are not trained yet", choices=("list", "run", "slurm"))
    path: str = key("${outputs}/${name}/reproduce", "<target>.html and <target>.json")
