"""Fit one model: batches, learning rates, the loop."""

from cellray.training.crops import check_crop
from cellray.training.fit import Fit, TrainingRun, fit

__all__ = ["Fit", "TrainingRun", "check_crop", "fit"]
