"""Fit one model: batches, learning rates, the loop, alone or in a team of processes."""

from cellray.training.crops import check_crop
from cellray.training.fit import Fit, fit
from cellray.training.state import TrainingRun, training_run
from cellray.training.team import ALONE, Team

__all__ = ["ALONE", "Fit", "Team", "TrainingRun", "check_crop", "fit", "training_run"]
