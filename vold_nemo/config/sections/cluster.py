"""The machine, how its Slurm is asked, and what a plan supposes."""

from __future__ import annotations

from dataclasses import dataclass

from vold_nemo.config.fields import ABOVE_ZERO, COUNT, PART, POSITIVE, SHARE, Bound, key, section

CHAIN = ("traces", "sft", "export_sft", "vold", "export_vold", "evaluate", "report")
VERBS = ("generate_traces", "sft", "vold")  # several of their ranks read the same weights
RATE = Bound("0.001 or more", lambda rate: rate >= 1e-3)  # of a device or link; what is slower takes longer than anybody waits
# sbatch's --signal: what is shorter may come too late to be put back (a minute), or ends a stage before it has begun.
WARNING = Bound("120 to 65535", lambda seconds: 120 <= seconds <= 65535)
RANKS = Bound("1 to 65536", lambda ranks: 1 <= ranks <= 1 << 16)


@dataclass
class GPUsConfig:
    """GPUs that each stage is submitted with; null = as many as one model copy takes (`traces`: one)."""

    traces: int | None = key(None, "for the teacher's traces", bound=POSITIVE)
    sft: int | None = key(None, "for stage 1", bound=POSITIVE)
    vold: int | None = key(None, "for stage 2", bound=POSITIVE)


@dataclass
class LaunchConfig:
    """How this site's Slurm starts a stage (slurm/README.md); written into the scripts of recipes/chain.py."""

    account: str | None = key(None, "sbatch's --account")
    partition: str | None = key(None, "sbatch's --partition")
    qos: str | None = key(None, "sbatch's --qos")
    constraint: str | None = key(None, "sbatch's --constraint")
    options: list[str] = key([], 'more of sbatch\'s: ["--exclusive", "--mail-type=FAIL"]')
    gres: str | None = key(None, "what one GPU is called: gpu, gpu:h100; null = GPUs are not asked for by --gres")
    cpus_per_task: int | None = key(None, "sbatch's --cpus-per-task", bound=POSITIVE)
    memory: str | None = key(None, "of a node: 240G, 0 = all of it")
    time: str = key("24:00:00", "of a stage; it is put back into the queue and goes on behind its checkpoint")
    signal_seconds: int = key(600, "Slurm's warning before the end: longer than a step, a checkpoint and the minute "
                              "that it may be late", bound=WARNING)  # fmt: skip
    max_restarts: int = key(3, "restarts in a row without a new checkpoint, after which a job stops with 87", bound=COUNT)
    runtime: str = key("bare", "what a rank runs in", choices=("bare", "pyxis", "apptainer"))
    container: str | None = key(None, "image of the two latter")
    mounts: list[str] = key([], '"outside:inside"')
    setup: list[str] = key([], "shell lines first: module load cuda, source venv/bin/activate")
    python: str | None = key(None, "interpreter; null = .venv of this repository, else `python`")
    interface: str | None = key(None, "network interfaces between nodes, as NCCL_SOCKET_IFNAME has them (=ib0, eth, ^docker), "
                                "gloo's too; null = NCCL's choice")  # fmt: skip
    hca: str | None = key(None, "InfiniBand or RoCE adapters, as NCCL_IB_HCA has it (mlx5, =mlx5_0,mlx5_1:1)")
    stage: str | None = key(None, "folder on each node's own disk that the weights of a stage are copied to before its ranks "
                            "start: /local/scratch/$SLURM_JOB_ID; null = ranks read the file system")  # fmt: skip
    stage_minutes: float = key(60.0, "that the copy may take", bound=ABOVE_ZERO)
    environment: dict[str, str] = key({}, "more variables: HF_HOME, HF_HUB_OFFLINE, NCCL_*, FI_*, UCX_*, ...")


@dataclass
class ClusterConfig:
    """The machine, as recipes/plan.py reckons with it: makers' peak rates of one GPU and its links, one direction."""

    name: str = key("local", "of the machine")
    gpus_per_node: int = key(1, "as Slurm gives them", bound=POSITIVE)
    gpus: GPUsConfig = section(GPUsConfig)
    memory_gib: float | None = key(None, "of one GPU; null = a plan without a verdict on memory", bound=ABOVE_ZERO)
    compute_capability: float | None = key(None, "8.0 (A100), 9.0 (H100, H200), 10.0 (B200); null = no FP8 is planned",
                                           bound=ABOVE_ZERO)  # fmt: skip
    bf16_tflops: float | None = key(None, "dense; null (or one of the four rates in GB/s) = a plan without times",
                                    bound=RATE)  # fmt: skip
    fp8_tflops: float | None = key(None, "dense; null = an FP8 teacher is timed at the bf16 rate", bound=RATE)
    memory_gbs: float | None = key(None, "bandwidth of a GPU's own memory, GB/s", bound=RATE)
    link_gbs: float | None = key(None, "between GPUs of a node, GB/s a GPU", bound=RATE)
    network_gbs: float | None = key(None, "between nodes, GB/s a GPU", bound=RATE)
    host_gbs: float | None = key(None, "between a GPU and its host's memory, GB/s", bound=RATE)
    storage_gbs: float | None = key(None, "that a node reads from the shared file system, GB/s; null = no time of a start",
                                    bound=RATE)  # fmt: skip
    storage_total_gbs: float | None = key(None, "that all nodes of a job read from it together, GB/s; null = without a limit",
                                          bound=RATE)  # fmt: skip
    disk_gbs: float | None = key(None, "that a node writes to, and reads from, its own disk, GB/s; null = no faster or slower "
                                 "than `storage_gbs`", bound=RATE)  # fmt: skip
    launch: LaunchConfig = section(LaunchConfig)


@dataclass
class ChainConfig:
    """recipes/chain.py: the stages of an experiment as Slurm jobs, as slurm/pipeline.sh asks for them."""

    action: str = key("write", "write = scripts alone; diff = say what submit would do, and touch nothing; test = ask Slurm "
                      "about each script", choices=("write", "diff", "test", "submit"))  # fmt: skip
    stages: list[str] = key([], "only these; [] = all", choices=CHAIN)


@dataclass
class StagingConfig:
    """recipes/stage_weights.py, run once a node before the ranks start: into `cluster.launch.stage`."""

    verb: str = key("vold", "whose weights", choices=VERBS)


@dataclass
class RehearseConfig:
    """recipes/rehearse.py: one rank of a stage on fake CUDA tensors, without a GPU."""

    stage: str = key("vold", "which stage, or the export of the finished run", choices=("sft", "vold", "export"))
    rank: int = key(0, "of the world", bound=COUNT)
    world: int | None = key(None, "ranks of the stage; null = `cluster.gpus.<stage>`", bound=RANKS)
    all: bool = key(False, "both stages and the export; of the first, a middle and the last pipeline stage the first rank and "
                    "one of others' experts")
    engine: str = key("auto", "layers: Transformer Engine's, the project's own, or the former where it can be fetched",
                      choices=("auto", "te", "local"))  # fmt: skip
    apex: bool = key(False, "as if NVIDIA's apex were installed: gradients of weights are added up by its kernels")
    micro_batches: int | None = key(4, "run of an update, the longest first; the rest is counted; null = all", bound=POSITIVE)
    deviation: float = key(0.05, "from the planned peak of a phase that is allowed", bound=PART)
    outlives_mib: float = key(256.0, "that a phase may leave behind on the device", bound=COUNT)
    path: str = key("${outputs}/${name}/rehearsal", "rehearsal.json and rehearsal.html")


@dataclass
class PlanConfig:
    """What recipes/plan.py supposes where no other key says it; `explain=true` prints all of it with its use."""

    train_efficiency: float = key(0.35, "share of bf16_tflops reached in forward and backward", bound=PART)
    forward_efficiency: float = key(0.45, "the same in the teacher's forward, of fp8_tflops too", bound=PART)
    memory_efficiency: float = key(0.6, "share of memory_gbs reached while decoding", bound=PART)
    network_efficiency: float = key(0.6, "share of link_gbs, network_gbs and host_gbs reached", bound=PART)
    layer_ms: float = key(0.6, "launches of a decoder layer in the transformers engine, which has no CUDA graphs", bound=COUNT)
    straggler: float = key(2.0, "longest answer of a decoded batch over the mean one, before the limit cuts it", bound=POSITIVE)
    import_seconds: float = key(30.0, "Python, torch, megatron-core and NeMo, imported by all ranks of a node at once",
                                bound=COUNT)  # fmt: skip
    group_seconds: float = key(1.0, "one communicator of NCCL, at its first use, on as many ranks as it has", bound=COUNT)
    engine_seconds: float = key(60.0, "vLLM's start besides its weights: compilation, graphs, profiling", bound=COUNT)
    reserve_gib: float = key(5.0, "CUDA context, NCCL buffers, workspaces, fragmentation", bound=COUNT)
    prompt_tokens: int = key(200, "mean prompt", bound=POSITIVE)
    response_tokens: int = key(2500, "mean rollout of the student", bound=POSITIVE)
    trace_tokens: int = key(4000, "mean trace of the teacher", bound=POSITIVE)
    trace_prompts: int = key(350_000, "paper: Mixture-of-Thoughts", bound=POSITIVE)
    reward_rate: float = key(0.5, "mean share of right rollouts over stage 2", bound=SHARE)
    layouts: int = key(8, "lines of search=true", bound=POSITIVE)
    path: str = key("${outputs}/${name}/plan", "plan.json and plan.html")
    stage: str = key("vold", "whose script `sbatch` asks for",
                     choices=("traces", "sft", "export_sft", "vold", "export_vold", "evaluate", "report"))  # fmt: skip
