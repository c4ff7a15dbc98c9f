"""The study file: one YAML, checked whole, frozen, every default written out, and the keys of its trials."""

from cellray.study.adaptive import BoundConfig, DecideConfig, SearchConfig, StoppingConfig
from cellray.study.group import Settings
from cellray.study.keys import EVALUATION_VERSION, SCHEMA_VERSION, Trial, short_hash
from cellray.study.loading import load_study, read_study
from cellray.study.loss import LossConfig, TermConfig, check_loss_settings, loss_named
from cellray.study.loss_check import check_losses
from cellray.study.quirks import QUIRKS
from cellray.study.roles import Role
from cellray.study.schema import study_schema
from cellray.study.settings import (
    AugmentConfig,
    ConfigurationConfig,
    DataConfig,
    DatasetConfig,
    EvaluationConfig,
    ModelConfig,
    RangeTestConfig,
    ResourcesConfig,
    SyntheticConfig,
    TrainingConfig,
    TuneConfig,
)
from cellray.study.whole import Study

__all__ = [
    "EVALUATION_VERSION",
    "QUIRKS",
    "SCHEMA_VERSION",
    "AugmentConfig",
    "BoundConfig",
    "ConfigurationConfig",
    "DataConfig",
    "DatasetConfig",
    "DecideConfig",
    "EvaluationConfig",
    "LossConfig",
    "ModelConfig",
    "RangeTestConfig",
    "ResourcesConfig",
    "Role",
    "SearchConfig",
    "Settings",
    "StoppingConfig",
    "Study",
    "SyntheticConfig",
    "TermConfig",
    "TrainingConfig",
    "Trial",
    "TuneConfig",
    "check_loss_settings",
    "check_losses",
    "load_study",
    "loss_named",
    "read_study",
    "short_hash",
    "study_schema",
]
