"""The networks that a study can train: c-ResUnet, those of other libraries, and a user's own; each returns logits."""

from cellray.model.building import MODELS, ModelFactory, build_model, find_factory
from cellray.model.c_resunet import CResUnet
from cellray.model.libraries import library
from cellray.model.weights import load_weights

__all__ = ["MODELS", "CResUnet", "ModelFactory", "build_model", "find_factory", "library", "load_weights"]
