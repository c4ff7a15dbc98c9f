"""The study file: one YAML, checked whole, frozen, every default written out, and the keys of its trials."""

from cellray.study.core import (
    EVALUATION_VERSION,
    SCHEMA_VERSION,
    Role,
    Study,
    Trial,
    short_hash,
    study_schema,
)
from cellray.study.loading import load_study, read_study
from cellray.study.settings import (
    AugmentConfig,
    ConfigurationConfig,
    DataConfig,
    DatasetConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    RangeTestConfig,
    ResourcesConfig,
    Settings,
    SyntheticConfig,
    TermConfig,
    TrainingConfig,
    check_loss_settings,
)

__all__ = [
    "EVALUATION_VERSION",
    "SCHEMA_VERSION",
    "AugmentConfig",
    "ConfigurationConfig",
    "DataConfig",
    "DatasetConfig",
    "EvaluationConfig",
    "LossConfig",
    "ModelConfig",
    "RangeTestConfig",
    "ResourcesConfig",
    "Role",
    "Settings",
    "Study",
    "SyntheticConfig",
    "TermConfig",
    "TrainingConfig",
    "Trial",
    "check_loss_settings",
    "load_study",
    "read_study",
    "short_hash",
    "study_schema",
]
