"""The study file: one YAML, checked whole, frozen, every default written out, and the keys of its trials."""

from cellray.study.adaptive import BoundConfig, DecideConfig, SearchConfig, StoppingConfig
from cellray.study.group import Settings
from cellray.study.key_page import key_page
from cellray.study.keys import EVALUATION_VERSION, SCHEMA_VERSION, Trial, short_hash
from cellray.study.loading import load_study, read_study
from cellray.study.loss import LossConfig, TermConfig, check_loss_settings, loss_named
from cellray.study.loss_check import check_losses
from cellray.study.network import OF_A_STUDY, ModelConfig, ReadWeights, model_named
from cellray.study.network_check import check_networks
from cellray.study.quirks import QUIRKS
from cellray.study.roles import Role
from cellray.study.schema import study_schema
from cellray.study.settings import (
    AugmentConfig,
    ConfigurationConfig,
    DataConfig,
    DatasetConfig,
    EvaluationConfig,
    RangeTestConfig,
    ReferenceConfig,
    ResourcesConfig,
    SyntheticConfig,
    TrainingConfig,
    TuneConfig,
)
from cellray.study.whole import Study

__all__ = [
    "EVALUATION_VERSION",
    "OF_A_STUDY",
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
    "ReadWeights",
    "ReferenceConfig",
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
    "check_networks",
    "key_page",
    "load_study",
    "loss_named",
    "model_named",
    "read_study",
    "short_hash",
    "study_schema",
]
