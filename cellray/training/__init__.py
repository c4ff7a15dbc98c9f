"""Fit one model: batches, learning rates, the loop."""

from cellray.training.fit import Fit, TrainingRun, fit

__all__ = ["Fit", "TrainingRun", "fit"]
