from .crops import check_crop
from .fitting import Fit, fit
from .state import TrainingRun, training_run
from .team import ALONE, Team

__all__ = [
    "ALONE",
    "Fit",
    "Team",
    "TrainingRun",
    "check_crop",
    "fit",
    "training_run",
]
