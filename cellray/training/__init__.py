"""Fit one model: batches, learning rates, the loop, alone or in a team of processes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
