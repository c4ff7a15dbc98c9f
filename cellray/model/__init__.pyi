from .building import build_model
from .c_resunet import CResUnet
from .libraries import library
from .names import MODELS, ModelFactory, find_factory
from .weights import load_weights

__all__ = ["MODELS", "CResUnet", "ModelFactory", "build_model", "find_factory", "library", "load_weights"]
