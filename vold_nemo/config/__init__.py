"""Configuration: the schema with one place for each key, composition, the launcher's environment and the exit codes."""

from vold_nemo.config.errors import ConfigError
from vold_nemo.config.schema import Config, to_config
from vold_nemo.config.sections.cluster import ClusterConfig, GPUsConfig, LaunchConfig, PlanConfig, StagingConfig
from vold_nemo.config.sections.data import (
    DataConfig,
    DatasetConfig,
    InspectConfig,
    MiniatureConfig,
    PrefetchConfig,
    PrepareConfig,
    PromptFieldsConfig,
    TracesConfig,
)
from vold_nemo.config.sections.evaluation import (
    AnswerFieldsConfig,
    CompareConfig,
    DriftConfig,
    EvaluateConfig,
    ExportConfig,
    HandoffConfig,
    JudgeConfig,
    ReportConfig,
    ReproduceConfig,
    VerifyConfig,
)
from vold_nemo.config.sections.models import FP8Config, ParallelConfig, StudentConfig, TeacherConfig, TokenizerConfig
from vold_nemo.config.sections.objective import BetaConfig, CorrectionConfig, KLConfig, ObjectiveConfig, PolicyConfig
from vold_nemo.config.sections.rollout import RewardConfig, RolloutConfig, VLLMConfig
from vold_nemo.config.sections.training import (
    CheckpointConfig,
    LimitsConfig,
    LoggingConfig,
    OffloadConfig,
    OptimizerConfig,
    SFTConfig,
    ValidationConfig,
    VOLDConfig,
)

__all__ = [
    "AnswerFieldsConfig", "BetaConfig", "CheckpointConfig", "ClusterConfig", "CompareConfig", "Config", "ConfigError",
    "CorrectionConfig", "DataConfig", "DatasetConfig", "DriftConfig", "EvaluateConfig", "ExportConfig", "FP8Config",
    "GPUsConfig", "HandoffConfig", "InspectConfig", "JudgeConfig", "KLConfig", "LaunchConfig", "LimitsConfig", "LoggingConfig",
    "MiniatureConfig", "ObjectiveConfig", "OffloadConfig", "OptimizerConfig", "ParallelConfig", "PlanConfig",
    "PolicyConfig", "PrefetchConfig", "PrepareConfig", "PromptFieldsConfig", "ReportConfig", "ReproduceConfig",
    "RewardConfig", "RolloutConfig", "SFTConfig", "StagingConfig", "StudentConfig", "TeacherConfig", "TokenizerConfig",
    "TracesConfig", "VLLMConfig", "VOLDConfig", "ValidationConfig", "VerifyConfig", "to_config",
]  # fmt: skip
