"""Weights that a training starts from, out of a file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cellray.errors import StudyError

INSIDE = ("model", "state_dict", "model_state_dict")
"""Keys under which files keep the weights beside other things."""
PREFIXES = ("module.", "model.", "net.", "network.")
"""What wrappers put before the names of all layers."""
CLASSIFIERS = ("fc.", "classifier.", "head.", "last_linear.")
"""Layers of an encoder that was trained to classify images."""
NAMED_LAYERS = 5


def load_weights(network: nn.Module, content: bytes, source: str) -> None:
    """Give a network the weights of a file, all of them, or all those of its `encoder` where the file has just that.

    Args:
        network: Gets them.
        content: Of the file: tensors by the names of layers, as `torch.save` writes them, or such a mapping under one
            of the keys `INSIDE`. Only tensors and plain values are read.
        source: What errors call it.

    Raises:
        StudyError: If the file holds something else, or layers lack, are left over or have another shape: naming them.
    """
    weights = _without_prefix(_read(content, source))
    encoder = getattr(network, "encoder", None)
    target: nn.Module = network
    if isinstance(encoder, nn.Module) and not weights.keys() & network.state_dict().keys():
        target = encoder
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(CLASSIFIERS)}
    expected = target.state_dict()
    problems = [
        f"{name} is {_shape(weights[name])} there and {_shape(tensor)} here"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems += [f"{name} isn't there" for name in expected if name not in weights]
    problems += [f"{name} is there only" for name in weights if name not in expected]
    if problems:
        more = f"; and {len(problems) - NAMED_LAYERS} more" if len(problems) > NAMED_LAYERS else ""
        raise StudyError(f"the weights {source} don't fit this network: {'; '.join(problems[:NAMED_LAYERS])}{more}")
    nn.Module.load_state_dict(target, weights)


def _read(content: bytes, source: str) -> dict[str, Tensor]:
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        told = "it holds more than tensors and plain values" if "weights_only" in str(error).lower() else "it isn't one"
        raise StudyError(f"the weights {source} can't be read as a file of torch.save: {told}") from error
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise StudyError(f"the weights {source} hold no tensors by name")
    return dict(found)


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
