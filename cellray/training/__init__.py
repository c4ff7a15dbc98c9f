"""Fit one model: batches, learning rates, the loop."""

from cellray.training.crops import check_crop
from cellray.training.fit import Fit, TrainingRun, fit, loss_function

__all__ = ["Fit", "TrainingRun", "check_crop", "fit", "loss_function"]
