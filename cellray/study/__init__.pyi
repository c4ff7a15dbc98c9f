from .adaptive import BoundConfig, DecideConfig, SearchConfig, StoppingConfig
from .group import Settings
from .key_page import key_page
from .keys import EVALUATION_VERSION, SCHEMA_VERSION, Trial, short_hash
from .loading import load_study, read_study
from .loss import LossConfig, TermConfig, check_loss_settings, loss_named
from .loss_check import check_losses
from .network import OF_A_STUDY, ModelConfig, ReadWeights, model_named
from .network_check import check_networks
from .quirks import QUIRKS
from .roles import Role
from .schema import study_schema
from .settings import (
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
from .whole import Study

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
