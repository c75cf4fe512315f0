"""Prompts, traces, and the embedded world."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from vold_nemo.config.fields import COUNT, PART, POSITIVE, SEED, SHARE, key, section


@dataclass
class PromptFieldsConfig:
    """Which column of a dataset is what; paths lead into structures: messages[0].content, reward_model.ground_truth."""

    prompt: str = key("prompt", "the question, or a list of messages")
    answer: str = key("answer", "the truth that the verifier compares with")
    image: str | None = key(None, "one picture, or a list of them")
    id: str | None = key("id", "rows without one are named by their number")
    domain: str | None = key(None, "accuracy is also told by it")
    source: str | None = key(None, "where a row came from: data.mixture weighs by it")
    verifier: str | None = key(None, "name of the row's verifier; null = reward.verifier")
    teacher: str | None = key(None, "name in `teachers` of the row's teacher in stage 2; rows without one have `teacher`")
    response: str | None = key(None, "the set's own trace (traces.engine=dataset); null = the assistant's turn after it")


@dataclass
class DatasetConfig:
    """One dataset: a JSONL or parquet file, a folder of them, or a hub id in the local cache."""

    path: str = key(MISSING, "file, folder or hub id")
    subset: str | None = key(None, "which of a hub set's configurations: all, math, ... of Mixture-of-Thoughts")
    split: str = key("train", "of a hub set; in a folder, how the names of its files begin")
    revision: str | None = key(None, "of a hub id; null = what the cache holds as main")
    limit: int | None = key(None, "only the first rows", bound=POSITIVE)
    max_characters: int = key(32_768, "ours: a row with a longer prompt is rejected", bound=POSITIVE)
    verifier: str | None = key(None, "of the rows that name none; built-in or of reward.verifiers; null = reward.verifier")
    fields: PromptFieldsConfig = section(PromptFieldsConfig)


@dataclass
class DataConfig:
    """What is trained on."""

    prompts: DatasetConfig = section(DatasetConfig, "stage 2 and trace generation")
    trace_prompts: DatasetConfig | None = key(None, "prompts of stage 1; null = data.prompts")
    system_prompt: str | None = key(None, "put before conversations that bring none of their own")
    instruction: str | None = key(None, "put behind the user's last turn, on a line of its own: how to think, how to answer")
    mixture: dict[str, float] = key({}, "stage 2, source: share of an epoch; {} = every row once", bound=COUNT)
    trace_mixture: dict[str, float] = key({}, "the same for stage 1", bound=COUNT)
    cache: str = key("${outputs}/cache", "tokenised traces, shared by runs")
    max_rejected_share: float = key(0.05, "above this share of bad rows a run stops", bound=SHARE)
    without: list[str] = key([], "ids of rows that training leaves out: also of a run that began with them, and goes on")


@dataclass
class PrepareConfig:
    """recipes/prepare_data.py: duplicates and the questions of evaluation sets out of the training prompts."""

    sets: list[str] = key(["prompts", "trace_prompts"], "which of data.*", choices=("prompts", "trace_prompts"))
    against: dict[str, DatasetConfig] = key({}, "name: set, besides evaluate.* and vold.validation")
    ngram: int = key(8, "words in a row that are compared with the evaluation questions; numbers are one word", bound=POSITIVE)
    share: float = key(0.5, "a prompt whose shared runs cover as much of an evaluation question is left out", bound=PART)
    common: int = key(10, "ours: runs in more evaluation questions, or in more prompts, are phrases and do not count",
                      bound=POSITIVE)  # fmt: skip
    numbers: str = key("any", "ours: a long question with any other numbers is the same one, too; same = with its own alone",
                       choices=("any", "same"))  # fmt: skip
    path: str = key("${outputs}/${name}/data", "<set>.jsonl (.parquet with images), report.json, what went, contamination.html")


@dataclass
class InspectConfig:
    """recipes/inspect_data.py: what a set holds, as a run would read it."""

    set: str = key("data.prompts", "which of the configured sets", choices=(
        "data.prompts", "data.trace_prompts", "evaluate.text", "evaluate.image", "vold.validation.data", "vold.validation.text",
    ))  # fmt: skip
    data: DatasetConfig | None = key(None, "another set in its place, read like data.prompts")
    tokenizer: str | None = key(None, "folder or hub id: lengths in tokens, and what its model could not be asked")
    examples: int = key(4, "rows shown whole", bound=COUNT)
    path: str = key("${outputs}/${name}/inspection", "inspection.html, inspection.json, rejected.jsonl")


@dataclass
class TracesConfig:
    """The teacher answers prompts (recipes/generate_traces.py)."""

    engine: str = key("transformers", "who decodes; dataset: no teacher, the set's own traces (paper's table 2)",
                      choices=("transformers", "vllm", "dataset"))  # fmt: skip
    path: str = key("${outputs}/${name}/traces/traces.jsonl", "where they are written, and read by stage 1")
    samples_per_prompt: int = key(1, "traces of each prompt", bound=POSITIVE)
    temperature: float = key(1.0, "0 = greedy", bound=COUNT)
    max_tokens: int = key(8192, "paper: longer traces are dropped", bound=POSITIVE)
    max_prompt_tokens: int = key(4096, "ours: longer prompts are left out and written to rejected.jsonl", bound=POSITIVE)
    verify: bool = key(False, "judge each trace by reward.verifier, drop none, and print the teacher's error rate")
    batch: int = key(64, "prompts answered at a time; with vllm, answers that decode at a time", bound=POSITIVE)
    tensor_parallel: int = key(1, "engine=vllm: GPUs of one task, which are one engine", bound=POSITIVE)
    memory_share: float = key(0.9, "engine=vllm: of a GPU's memory, for weights and key-value cache", bound=PART)
    shard: int = key(0, "this job's part of `shards`", bound=COUNT)
    shards: int = key(1, "jobs that share the prompts", bound=POSITIVE)


@dataclass
class PrefetchConfig:
    """recipes/prefetch.py: models and data into the shared cache, with a lock file of hashes."""

    lock: str = key("${outputs}/prefetch.lock.json", "the lock file")
    check: bool = key(False, "only compare this machine with the lock file; no network")


@dataclass
class MiniatureConfig:
    """The embedded world (recipes/prepare_miniature.py)."""

    path: str = key("${outputs}/miniature_world", "folder of teacher, base student and questions")
    seed: int = key(0, "of weights, lessons and questions", bound=SEED)
    teacher_steps: int = key(140, "training of the teacher", bound=POSITIVE)
    text_steps: int = key(160, "of the base; with half of it the base may know only part of its facts, by the luck of rounding",
                          bound=POSITIVE)  # fmt: skip
    vision_steps: int = key(120, "of the base's vision tower", bound=POSITIVE)
    joint_steps: int = key(120, "of the base on text and pictures", bound=POSITIVE)
    processes: int = key(2, "teacher and base side by side, one thread each", bound=POSITIVE)
    sft_prompts: int = key(1024, "the teacher answers these", bound=POSITIVE)
    train_prompts: int = key(8192, "stage 2", bound=POSITIVE)
    test_questions: int = key(800, "of each kind, text and image", bound=POSITIVE)
    dev_questions: int = key(200, "of each kind, for validation", bound=POSITIVE)
