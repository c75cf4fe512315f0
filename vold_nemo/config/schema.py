"""Typed configuration: the root of the schema, and a composed configuration as its instance.

``conf/`` composes on top of these dataclasses (Hydra registers :class:`Config` as the schema), so an unknown key or a value
of the wrong type is refused while the command line is read.  No other file holds a default, a bound or a choice: code below
this floor takes these dataclasses, or plain arguments, and never asks ``cfg.get(key, default)``.

A key marked *ours* fills something that the paper (arXiv 2510.23497) leaves open; a key marked *paper* is printed there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from omegaconf import DictConfig, OmegaConf

from vold_nemo.config.fields import SEED, key, section
from vold_nemo.config.sections.cluster import ChainConfig, ClusterConfig, PlanConfig, RehearseConfig, StagingConfig
from vold_nemo.config.sections.data import (
    DataConfig,
    InspectConfig,
    MiniatureConfig,
    PrefetchConfig,
    PrepareConfig,
    TracesConfig,
)
from vold_nemo.config.sections.evaluation import (
    CompareConfig,
    DriftConfig,
    EvaluateConfig,
    ExportConfig,
    HandoffConfig,
    ReportConfig,
    ReproduceConfig,
    VerifyConfig,
)
from vold_nemo.config.sections.models import ParallelConfig, StudentConfig, TeacherConfig, TokenizerConfig
from vold_nemo.config.sections.objective import ObjectiveConfig
from vold_nemo.config.sections.rollout import RewardConfig, RolloutConfig
from vold_nemo.config.sections.training import (
    CheckpointConfig,
    LimitsConfig,
    LoggingConfig,
    ProfileConfig,
    SFTConfig,
    VOLDConfig,
)


@dataclass
class Config:
    """Everything; each verb reads the sections that it declares (``@recipe(reads=...)``)."""

    name: str = key("vold", "experiment; run folders live under <outputs>/<name>/")
    evidence: str = key("planned", "what has been run of this experiment as its file stands; benchmarks/evidence.py keeps it")
    outputs: str = key("outputs", "folder of all that is written")
    seed: int = key(1, "of sampling, and of the order of the data", bound=SEED)
    device: str = key("auto", "auto = a GPU where there is one", choices=("auto", "cpu", "cuda"))
    precision: str = key("bf16", "of the student", choices=("bf16", "fp32"))
    dry_run: bool = key(False, "check everything, print what would run, touch no device")
    strict: bool = key(False, "recipes/plan.py: what is not fetched or not built yet is an error, too")
    explain: bool = key(False, "recipes/plan.py: print every assumption and formula")
    search: bool = key(False, "recipes/plan.py: rank all layouts, and name the fewest GPUs that fit")
    sbatch: str | None = key(None, "recipes/plan.py: write the Slurm script of `plan.stage` into this file, if the plan fits")
    json: bool = key(False, "recipes/doctor.py: one JSON document a node on standard output, to go into a report of trouble")
    student: StudentConfig = section(StudentConfig)
    teacher: TeacherConfig = section(TeacherConfig)
    teachers: dict[str, TeacherConfig] = key({}, "more of them, by the name that a prompt gives")
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    parallel: ParallelConfig = section(ParallelConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    reward: RewardConfig = section(RewardConfig)
    rollout: RolloutConfig = section(RolloutConfig)
    data: DataConfig = section(DataConfig)
    prepare: PrepareConfig = section(PrepareConfig)
    inspect: InspectConfig = section(InspectConfig)
    traces: TracesConfig = section(TracesConfig)
    sft: SFTConfig = section(SFTConfig)
    vold: VOLDConfig = section(VOLDConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    limits: LimitsConfig = section(LimitsConfig)
    logging: LoggingConfig = section(LoggingConfig)
    profile: ProfileConfig = section(ProfileConfig)
    prefetch: PrefetchConfig = section(PrefetchConfig)
    export: ExportConfig = section(ExportConfig)
    evaluate: EvaluateConfig = section(EvaluateConfig)
    handoff: HandoffConfig = section(HandoffConfig)
    reproduce: ReproduceConfig = section(ReproduceConfig)
    compare: CompareConfig = section(CompareConfig)
    verify: VerifyConfig = section(VerifyConfig)
    drift: DriftConfig = section(DriftConfig)
    report: ReportConfig = section(ReportConfig)
    miniature: MiniatureConfig = section(MiniatureConfig)
    cluster: ClusterConfig = section(ClusterConfig)
    chain: ChainConfig = section(ChainConfig)
    staging: StagingConfig = section(StagingConfig)
    plan: PlanConfig = section(PlanConfig)
    rehearse: RehearseConfig = section(RehearseConfig)


def to_config(composed: DictConfig) -> Config:
    """Resolve a composed Hydra configuration into plain :class:`Config` dataclasses."""
    if OmegaConf.get_type(composed) is not Config:
        composed = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), composed))
    return cast(Config, OmegaConf.to_object(composed))
