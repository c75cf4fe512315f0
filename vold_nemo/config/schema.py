"""Typed configuration: every key, its type and its one default.

``conf/`` composes on top of the dataclasses below (Hydra registers :class:`Config` as the schema), so an unknown key or a
value of the wrong type is refused while the command line is read.  No other file holds a default: code below this floor
takes these dataclasses, or plain arguments, and never asks ``cfg.get(key, default)``.

A key marked *ours* fills something that the paper (arXiv 2510.23497) leaves open; a key marked *paper* is printed there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf


class ConfigError(ValueError):
    """Bad input, found before any work is lost.  Recipes print it and leave with exit code 2.

    ``key`` names what to change (a configuration key or a file), ``value`` what was found, ``allowed`` what would be
    accepted, ``mend`` the way out in one sentence.
    """

    def __init__(self, key: str, value: Any, allowed: str, mend: str):
        self.key, self.value, self.allowed, self.mend = key, value, allowed, mend
        super().__init__(f"{key} = {value!r}\n  allowed: {allowed}\n  mend:    {mend}")


def require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(key, value, " | ".join(choices), f"set {key} to one of these")


@dataclass
class StudentConfig:
    """The vision-language student, an ordinary Hugging Face checkpoint."""

    path: str = MISSING  # folder, or hub id found in the local cache
    revision: str | None = None


@dataclass
class FP8Config:
    """The teacher's linear layers in FP8 (docs/fp8.md); embedding, norms, router and LM head stay bf16."""

    backend: str = "te"  # te | emulated: Transformer Engine on a GPU with FP8, or FP8 weights on any device, for study
    recipe: str = "auto"  # auto | blockwise | tensorwise | mxfp8: which values share a scale; auto follows GPU and shapes
    activations: bool = True  # emulated: what a linear layer reads is rounded to FP8, too; false = weights alone
    probe_tokens: int = 512  # ours: tokens scored in both precisions before the first step; 0 = no probe
    probe_layers: int = 2  # ours: layers of each pipeline stage that the probe computes in bf16 for comparison
    max_drift: float = 0.1  # ours: a probe whose mean KL(bf16 || fp8) is above this stops the run; nats a token


@dataclass
class TeacherConfig:
    """The text-only teacher, an ordinary Hugging Face checkpoint; frozen."""

    path: str = MISSING
    revision: str | None = None
    precision: str = "auto"  # auto | fp32 | bf16 | fp8: auto = fp8 where GPU and libraries have it (docs/fp8.md)
    thinking: bool = False  # ours: passed to the teacher's chat template as enable_thinking
    offload: bool = False  # off the device while it does not score; its LM head stays for the loss
    offload_to: str = "host"  # host | checkpoint: kept in (pinned) host memory, or dropped and read from disk again
    fp8: FP8Config = field(default_factory=FP8Config)


@dataclass
class TokenizerConfig:
    """What the student's tokenizer becomes."""

    adopt_teacher_tokens: bool = False  # give the student the teacher's extra tokens (<think>) in spare embedding rows


@dataclass
class ParallelConfig:
    """Layout shared by student and teacher.  Data parallel size = world size / (tensor x pipeline x context)."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1  # ranks that share each sequence, for long ones
    expert: int = 1
    sequence: bool = False  # Megatron sequence parallelism; needs tensor > 1
    recompute: str = "none"  # of the student's activations in the backward pass: none | selective (feed-forward) | full

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context


@dataclass
class PolicyConfig:
    """The policy-gradient term."""

    enabled: bool = True
    loss: str = "grpo"  # grpo | gspo
    clip_low: float = 0.2  # paper
    clip_high: float = 0.3  # paper
    dual_clip: float | None = None  # bound on the loss where the advantage is negative (off in the paper)
    advantage: str = "standardised"  # standardised (paper: GRPO) | centred (Dr. GRPO)
    std_correction: int = 1  # ours: 1 = divide by n-1, 0 = divide by n
    std_delta: float = 1e-4  # ours: the paper's delta in (r - mean)/(std + delta)
    average: str = "sequence"  # ours: token | sequence | constant


@dataclass
class BetaConfig:
    """Weight of the KL term, and how it moves over the steps of stage 2."""

    value: float = 1e-3  # paper's supplement (0.1 in its section 4.1; never reconciled)
    final: float | None = None  # value reached at the end of an anneal
    schedule: str = "constant"  # constant | linear | exponential
    steps: int | None = None  # steps over which the anneal runs; null = vold.steps
    warmup_steps: int = 0
    off_step: int | None = None  # from this step on beta = 0: distillation first, then pure GRPO


@dataclass
class KLConfig:
    """The distillation term."""

    enabled: bool = True
    estimator: str = "k2"  # paper: k2; k1_reward | k3 | reverse | forward | jsd | topk | vopd
    mask: str = "reward"  # paper: reward; none | all_wrong_group | perplexity
    mask_one_sided: bool = True  # ours: false lets exact estimators act where the sampled id is not the teacher's
    mask_eos: bool = False  # ours: true takes the end-of-sequence token out of the KL
    average: str = "sequence"  # ours: token | sequence | constant
    clamp: float | None = None  # per-token bound on the KL; the clamped share is logged
    teacher_temperature: float | None = None  # ours: null = the sampling temperature
    top_k: int = 64  # estimator=topk: how many of the teacher's ids are kept
    jsd_weight: float = 0.5  # estimator=jsd: weight of the teacher in the mixture
    reward_horizon: str = "immediate"  # estimator=k1_reward: immediate | return_to_go
    reward_placement: str = "after"  # estimator=k1_reward: before | after group standardisation
    beta: BetaConfig = field(default_factory=BetaConfig)


@dataclass
class CorrectionConfig:
    """Correction for the gap between the rollout engine's and the trainer's log-probs."""

    mode: str = "auto"  # ours: auto (token with rollout.engine=vllm, else none) | none | token | sequence | sequence_mask
    cap: float = 2.0  # ours: weights above it are cut to it (sequence_mask: the rollout is left out)
    on_kl: bool = True


@dataclass
class ObjectiveConfig:
    """Stage 2, eq. 5 and 6."""

    arm: str = "sft_vold"  # name of the run in reports
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    chunk_tokens: int = 512  # tokens that meet the LM heads at a time
    kernels: str = "torch"  # torch | triton: who walks over a chunk's logits on a GPU; triton is not measured yet
    skip: bool = True  # leave out work that cannot change a gradient (design: the mask is a saving)


@dataclass
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = MISSING
    min_learning_rate: float = 0.0
    schedule: str = "cosine"  # constant | linear | cosine
    warmup_steps: int = 0
    weight_decay: float = 1e-2  # paper
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_grad: float = 1.0
    distributed: bool = False  # shard optimizer state over data-parallel ranks
    max_skipped: int = 3  # ours: updates in a row skipped as not finite before the run stops


@dataclass
class PromptFieldsConfig:
    """Which column of a dataset is what; paths lead into structures: messages[0].content, reward_model.ground_truth."""

    prompt: str = "prompt"
    answer: str = "answer"
    image: str | None = None
    id: str | None = "id"  # rows without one are named by their number
    domain: str | None = None
    source: str | None = None  # where a row came from: data.mixture weighs by it
    verifier: str | None = None  # name of the row's verifier; null = reward.verifier
    teacher: str | None = None  # name in `teachers` of the row's teacher in stage 2; rows without one have `teacher`
    response: str | None = None  # the set's own trace (traces.engine=dataset); null = the assistant's turn behind the prompt


@dataclass
class DatasetConfig:
    """One dataset: a JSONL or parquet file, a folder of them, or a hub id in the local cache."""

    path: str = MISSING
    subset: str | None = None  # which of a hub set's configurations: all, math, ... of Mixture-of-Thoughts
    split: str = "train"
    revision: str | None = None  # of a hub id; null = what the cache holds as main
    limit: int | None = None  # only the first rows
    max_characters: int = 32_768  # ours: a row with a longer prompt is rejected
    verifier: str | None = None  # of the rows that name none (fields.verifier); null = reward.verifier
    fields: PromptFieldsConfig = field(default_factory=PromptFieldsConfig)


@dataclass
class DataConfig:
    prompts: DatasetConfig = field(default_factory=DatasetConfig)  # stage 2 and trace generation
    trace_prompts: DatasetConfig | None = None  # prompts of stage 1; null = data.prompts
    system_prompt: str | None = None  # put before conversations that bring none of their own
    instruction: str | None = None  # put behind the user's last turn, on a line of its own: how to think, how to answer
    mixture: dict[str, float] = field(default_factory=dict)  # stage 2, source: share of an epoch; {} = every row once
    trace_mixture: dict[str, float] = field(default_factory=dict)  # the same for stage 1
    cache: str = "${outputs}/cache"  # tokenised traces, shared by runs
    max_rejected_share: float = 0.05  # above this share of bad rows a run stops


@dataclass
class PrepareConfig:
    """recipes/prepare_data.py: duplicates and the questions of evaluation sets out of the training prompts."""

    sets: list[str] = field(default_factory=lambda: ["prompts", "trace_prompts"])  # which of data.*
    against: dict[str, DatasetConfig] = field(default_factory=dict)  # name: set, besides evaluate.* and vold.validation.data
    ngram: int = 13  # a prompt that shares so many words in a row with an evaluation question is left out
    common: int = 10  # ours: word sequences in more evaluation questions than this are phrases and give nothing away
    path: str = "${outputs}/${name}/data"  # <set>.jsonl (.parquet with images), report.json, rejected.jsonl


@dataclass
class TracesConfig:
    """The teacher answers prompts (recipes/generate_traces.py)."""

    engine: str = "transformers"  # transformers | vllm | dataset: no teacher, the set's own traces (paper's table 2)
    path: str = "${outputs}/${name}/traces/traces.jsonl"
    samples_per_prompt: int = 1
    temperature: float = 1.0
    max_tokens: int = 8192  # paper: longer traces are dropped
    max_prompt_tokens: int = 4096  # ours: longer prompts are left out and written to rejected.jsonl
    verify: bool = False  # judge each trace by reward.verifier, drop none, and print the teacher's error rate
    batch: int = 64  # prompts answered at a time; with vllm, answers that decode at a time
    tensor_parallel: int = 1  # engine=vllm: GPUs of one task, which are one engine
    memory_share: float = 0.9  # engine=vllm: of a GPU's memory, for weights and key-value cache
    shard: int = 0  # this job's part of `shards`
    shards: int = 1


@dataclass
class SFTConfig:
    """Stage 1, eq. 4."""

    run: str = "${name}/sft"
    steps: int = 4000  # paper
    batch: int = 256  # paper; sequences per step over all ranks
    micro_batch: int = 1  # rows; padded to the longest of them
    packing: bool = False  # whole traces one after the other in a row, each attending to itself alone
    pack_length: int | None = None  # tokens of a packed row, at most; null = max_length
    max_length: int = 8192  # paper; longer traces are dropped
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5e-5, warmup_steps=150)  # paper
    )


@dataclass
class RewardConfig:
    """Verifiers (vold_nemo/rewards/registry.py); a row's `data.*.fields.verifier` column overrides the default."""

    verifier: str = "boxed"  # boxed (paper) | math | choice | numeric | package.module:function | 0.8*math+0.2*boxed
    seconds: float = 2.0  # hard limit an answer; a verifier that takes longer is killed and the answer is wrong
    workers: int | None = None  # killable verifier processes of a node, shared by its ranks; null = its cores, at most 32


@dataclass
class VLLMConfig:
    """The vLLM engine on each rank's device, beside the trainer (`rollout.engine=vllm`)."""

    tensor_parallel: int = 1  # ranks in a row that are one engine; divides the world
    memory_share: float = 0.5  # of the device's memory: weights and key-value cache (vLLM's gpu_memory_utilization)
    cache_bytes: int | None = None  # size of a rank's key-value cache instead; null = what memory_share leaves
    max_length: int | None = None  # tokens of a prompt with its answer; null = as many as the checkpoint has positions
    images: int = 4  # most images of one prompt (validation)
    eager: bool = False  # without CUDA graphs: starts faster, decodes slower


@dataclass
class RolloutConfig:
    engine: str = "transformers"  # transformers | vllm
    samples_per_prompt: int = 5  # paper: K
    temperature: float = 1.0  # ours
    max_tokens: int = 8192
    batch: int = 64  # sequences generated at a time on a rank
    stop: list[str] = field(default_factory=list)  # texts that end an answer beside the model's end-of-sequence ids
    overlong: str = "keep"  # ours: keep | mask_policy | mask_all: answers cut off for length leave the policy term, or both
    token_budget: int | None = None  # ours: response tokens of a step, all ranks; once spent, what still runs is cut off
    refill_rounds: int = 0  # ours: times a step replaces its groups without any signal (all right) by other prompts
    probe_tolerance: float = 5e-2  # largest mean |log-prob difference| of engine and trainer on the same weights
    checksum_parts: int = 4  # ours: a sync compares every n-th block of each tensor, other ones each time; the first one all
    mismatch_warning: float = 3.0  # ours: warn where that mean is so many times its median over the last 20 steps
    sleep: bool = False  # the engine leaves the device while the teacher scores and the student trains
    vllm: VLLMConfig = field(default_factory=VLLMConfig)


@dataclass
class ValidationConfig:
    """Greedy accuracy on images and on held-out text during stage 2, on the rollout engine (the paper's figure 3)."""

    every: int = 0  # steps; 0 = never; once before the first step, too
    data: DatasetConfig | None = None  # image questions; accuracy also by their `domain`
    text: DatasetConfig | None = None  # text questions that are not trained on
    hold_out: int = 0  # ours: instead of `text`, so many of the training prompts, kept out of training
    max_tokens: int = 1024


@dataclass
class OffloadConfig:
    """What leaves the device in the phases of stage 2 that do without it (vold_nemo/models/handover.py)."""

    gradients: bool = False  # gradient buffers: freed outside the training phase
    optimizer: bool = False  # master weights and Adam's moments: in host memory outside the training phase


@dataclass
class VOLDConfig:
    """Stage 2, the loop."""

    run: str = "${name}/${objective.arm}"
    start: str = "${outputs}/${name}/sft/hf"  # Hugging Face checkpoint the student starts from
    steps: int = 60  # paper
    prompts_per_step: int = 256  # paper says batch 256; ours: it counts prompts
    updates_per_step: int = 1  # ours: optimizer steps on one batch of rollouts
    micro_batch_tokens: int = 16384  # padded tokens of one micro-batch
    rollout_log_every: int = 1  # steps between rollouts/step_*.jsonl files; 0 = never
    rollout_log_tokens: bool = True  # in them also ids, log-probs and KL of every token, some 30 bytes each
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=6e-6, warmup_steps=5)  # paper
    )
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)


@dataclass
class CheckpointConfig:
    every: int = 50
    keep: int = 2  # the newest so many; more are kept by the two rules below
    keep_every: int = 0  # and each whose step is a multiple of this; 0 = none
    keep_best: int = 0  # and the best so many by `metric`; 0 = none
    metric: str = "loss"  # a name in metrics.jsonl: reward_mean, seconds.train, ...
    metric_best: str = "min"  # min | max
    asynchronous: bool = True  # written by a thread while training goes on, from a copy in host memory; first and last are not
    resume: str = "auto"  # auto | never | required
    reshard: bool = False  # resume in another layout, too: weights and optimizer exactly, random states anew


@dataclass
class LimitsConfig:
    """Time limits that a training run keeps by itself."""

    wall_minutes: float | None = None  # the step that would end later is not begun: checkpoint, exit 85
    stuck_minutes: float | None = 60.0  # a rank that spends longer in one phase hangs: stacks of all ranks, exit 86


@dataclass
class LoggingConfig:
    tensorboard: bool = True
    wandb_project: str | None = None  # set to log to Weights & Biases


@dataclass
class PrefetchConfig:
    """recipes/prefetch.py: models and data into the shared cache, with a lock file of hashes."""

    lock: str = "${outputs}/prefetch.lock.json"
    check: bool = False  # only compare this machine with the lock file; no network


@dataclass
class ExportConfig:
    """recipes/export_hf.py: a run's newest weights as an ordinary Hugging Face checkpoint."""

    run: str = "${sft.run}"  # run folder under `outputs`, or a .nemo file
    source: str = "${student.path}"  # where config, tokenizer, processor and vision tower come from
    path: str | None = None  # null = <outputs>/<run>/hf
    max_shard_bytes: int = 5_000_000_000
    verify: bool = False  # load with transformers and compare logits: holds the student whole, twice


@dataclass
class JudgeConfig:
    """A language model that reads the answers that the rules cannot; off without a url."""

    url: str | None = None  # of an OpenAI-compatible endpoint, up to /v1: http://localhost:8000/v1
    model: str | None = None  # name that the endpoint knows it by
    key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key; without one, none is sent
    reads: str = "unparsed"  # unparsed | all
    seconds: float = 60.0  # time-out of one request
    retries: int = 3
    parallel: int = 8  # requests at a time


@dataclass
class EvaluateConfig:
    models: dict[str, str] = field(default_factory=dict)  # arm: checkpoint folder
    engine: str = "transformers"  # transformers | vllm: one a process, on one device, with the rest of rollout.vllm
    benchmarks: list[str] = field(default_factory=list)  # mathvista, mmmu_pro_vision, ...: docs/benchmarks.md
    benchmark_paths: dict[str, str] = field(default_factory=dict)  # benchmark: folder or hub id in place of the pinned one
    text: DatasetConfig | None = None
    image: DatasetConfig | None = None
    limit: int | None = None  # only the first questions of each benchmark
    max_tokens: int = 1024
    batch: int = 64
    samples: int = 0  # also this many samples a question at `temperature`: avg@k, pass@k (0 = greedy only)
    temperature: float = 1.0
    shard: int = 0  # this job's part of `shards`; each rank takes a part of it
    shards: int = 1
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    path: str = "${outputs}/${name}/evaluation"


@dataclass
class CompareConfig:
    """recipes/compare.py: evaluations side by side, question by question."""

    results: dict[str, str] = field(default_factory=dict)  # name: folder of an evaluation; the last model is asked about
    examples: int = 6  # questions shown of those won, and of those lost
    path: str = "${outputs}/${name}/comparison"  # compare.json and compare.html


@dataclass
class HandoffConfig:
    """recipes/handoff.py: a checkpoint to lmms-eval or VLMEvalKit, and their answers back."""

    tool: str = "lmms_eval"  # lmms_eval | vlmevalkit
    model: str | None = None  # exported checkpoint to write a script for
    bring: str | None = None  # the tool's file of answers, or a folder of them, to read; null = write the script
    arm: str = "model"  # name of the model in scripts and tables
    scorer: str = "theirs"  # theirs | ours
    path: str = "${outputs}/${name}/handoff"


@dataclass
class ReproduceConfig:
    """recipes/reproduce.py: a table or figure of the paper beside ours."""

    target: str = "table1"  # table1 | table2 | table3 | table5 | table6 | figure3 | figure4 | figure5 | figure6
    scale: str = "miniature"  # miniature | paper: experiment miniature or paper_3b, if none is given
    missing: str = "list"  # list | run | slurm: what to do about arms that are not trained yet
    path: str = "${outputs}/${name}/reproduce"


@dataclass
class AnswerFieldsConfig:
    """Which column of a file of answers is what; the defaults are those of `rollouts/` and `answers/` files."""

    response: str = "text"
    truth: str = "truth"
    id: str | None = "id"  # rows without one are named by their number
    verifier: str | None = None  # name of the row's verifier; null = reward.verifier


@dataclass
class VerifyConfig:
    """recipes/verify.py: judge the answers in a file."""

    answers: str | None = None  # *.jsonl, *.json or *.parquet, a folder of them, or a hub id in the local cache
    split: str = "train"
    limit: int | None = None  # only the first rows
    fields: AnswerFieldsConfig = field(default_factory=AnswerFieldsConfig)
    path: str = "${outputs}/${name}/verify"  # verdicts.jsonl, rejected.jsonl, diagnosis.json


@dataclass
class DriftConfig:
    """recipes/teacher_drift.py: the teacher in FP8 against the same in bf16."""

    traces: str = "${traces.path}"
    limit: int = 64  # only the first traces
    max_length: int = 4096  # prompt + response; longer traces are left out
    worst: int = 20  # tokens shown
    path: str = "${outputs}/${name}/drift"  # drift.json and drift.html


@dataclass
class ReportConfig:
    path: str = "${outputs}/${name}/report.html"
    results: str = "${evaluate.path}/results.json"
    runs: dict[str, str] = field(default_factory=dict)  # arm: run folder under `outputs`
    examples: int = 4  # image questions shown with each model's answer
    differences: list[str] = field(default_factory=list)  # settings that differ from the paper's
    crutches: list[str] = field(default_factory=list)  # what the miniature leans on


@dataclass
class MiniatureConfig:
    """The embedded world (recipes/prepare_miniature.py)."""

    path: str = "${outputs}/miniature_world"
    seed: int = 0
    teacher_steps: int = 140
    text_steps: int = 160  # with half of it the base may know only part of its facts, by the luck of rounding
    vision_steps: int = 120
    joint_steps: int = 120
    processes: int = 2  # teacher and base side by side, one thread each
    sft_prompts: int = 1024  # the teacher answers these
    train_prompts: int = 8192  # stage 2
    test_questions: int = 800
    dev_questions: int = 200


@dataclass
class GPUsConfig:
    """GPUs that each stage is submitted with; null = as many as one model copy takes (`traces`: one)."""

    traces: int | None = None
    sft: int | None = None
    vold: int | None = None


@dataclass
class LaunchConfig:
    """How this site's Slurm starts a stage (slurm/README.md); written into the scripts of recipes/chain.py."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: list[str] = field(default_factory=list)  # more of sbatch's: ["--exclusive", "--mail-type=FAIL"]
    gres: str | None = None  # what one GPU is called: gpu, gpu:h100; null = GPUs are not asked for by --gres
    cpus_per_task: int | None = None
    memory: str | None = None  # of a node: 240G, 0 = all of it
    time: str = "24:00:00"  # of a stage; it is put back into the queue and goes on behind its checkpoint
    signal_seconds: int = 600  # Slurm's warning before the end: longer than a step and a checkpoint (it may come late)
    max_restarts: int = 3  # restarts in a row without a new checkpoint, after which a job stops with 87
    runtime: str = "bare"  # bare | pyxis | apptainer
    container: str | None = None  # image of the two latter
    mounts: list[str] = field(default_factory=list)  # "outside:inside"
    setup: list[str] = field(default_factory=list)  # shell lines first: module load cuda, source venv/bin/activate
    python: str | None = None  # interpreter; null = .venv of this repository, else `python`
    environment: dict[str, str] = field(default_factory=dict)  # NCCL_SOCKET_IFNAME, HF_HOME, HF_HUB_OFFLINE, ...


@dataclass
class ClusterConfig:
    """The machine, as recipes/plan.py reckons with it: makers' peak rates of one GPU and its links, one direction."""

    name: str = "local"
    gpus_per_node: int = 1
    gpus: GPUsConfig = field(default_factory=GPUsConfig)
    memory_gib: float | None = None  # of one GPU; null = a plan without a verdict on memory
    compute_capability: float | None = None  # 8.0 (A100), 9.0 (H100, H200), 10.0 (B200); null = no FP8 is planned by itself
    bf16_tflops: float | None = None  # dense; null (or one of the four rates in GB/s) = a plan without times
    fp8_tflops: float | None = None  # dense; null = an FP8 teacher is timed at the bf16 rate
    memory_gbs: float | None = None  # bandwidth of a GPU's own memory, GB/s
    link_gbs: float | None = None  # between GPUs of a node, GB/s a GPU
    network_gbs: float | None = None  # between nodes, GB/s a GPU
    host_gbs: float | None = None  # between a GPU and its host's memory, GB/s
    launch: LaunchConfig = field(default_factory=LaunchConfig)


@dataclass
class PlanConfig:
    """What recipes/plan.py supposes where no other key says it; `explain=true` prints all of it with its use."""

    train_efficiency: float = 0.35  # share of bf16_tflops reached in forward and backward
    forward_efficiency: float = 0.45  # the same in the teacher's forward, of fp8_tflops too
    memory_efficiency: float = 0.6  # share of memory_gbs reached while decoding
    network_efficiency: float = 0.6  # share of link_gbs, network_gbs and host_gbs reached
    layer_ms: float = 0.6  # launches of one decoder layer in the transformers engine, which has no CUDA graphs
    straggler: float = 2.0  # longest answer of a decoded batch over the mean one, before the limit cuts it
    reserve_gib: float = 5.0  # CUDA context, NCCL buffers, workspaces, fragmentation
    prompt_tokens: int = 200
    response_tokens: int = 2500  # mean rollout of the student
    trace_tokens: int = 4000  # mean trace of the teacher
    trace_prompts: int = 350_000  # paper: Mixture-of-Thoughts
    reward_rate: float = 0.5  # mean share of right rollouts over stage 2
    layouts: int = 8  # lines of search=true
    path: str = "${outputs}/${name}/plan"  # plan.json and plan.html
    stage: str = "vold"  # whose script `sbatch` asks for: traces | sft | export_sft | vold | export_vold | evaluate | report


@dataclass
class Config:
    name: str = "vold"  # experiment; run folders live under <outputs>/<name>/
    outputs: str = "outputs"
    seed: int = 1
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "bf16"  # bf16 | fp32
    dry_run: bool = False
    strict: bool = False  # recipes/plan.py: what is not fetched or not built yet is an error, too
    explain: bool = False  # recipes/plan.py: print every assumption and formula
    search: bool = False  # recipes/plan.py: rank all layouts, and name the fewest GPUs that fit
    sbatch: str | None = None  # recipes/plan.py: write the Slurm script of `plan.stage` into this file, if the plan fits
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teachers: dict[str, TeacherConfig] = field(default_factory=dict)  # more of them, by the name that a prompt gives
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    vold: VOLDConfig = field(default_factory=VOLDConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    prefetch: PrefetchConfig = field(default_factory=PrefetchConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    handoff: HandoffConfig = field(default_factory=HandoffConfig)
    reproduce: ReproduceConfig = field(default_factory=ReproduceConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    miniature: MiniatureConfig = field(default_factory=MiniatureConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)


def to_config(composed: DictConfig) -> Config:
    """Resolve a composed Hydra configuration into plain :class:`Config` dataclasses."""
    typed = OmegaConf.merge(OmegaConf.structured(Config), composed)
    OmegaConf.resolve(typed)
    return OmegaConf.to_object(typed)
