"""Fit one model: batches, learning rates, the loop."""

from cellray.training.crops import check_crop
from cellray.training.fit import Fit, TrainingRun, fit, training_run

__all__ = ["Fit", "TrainingRun", "check_crop", "fit", "training_run"]
