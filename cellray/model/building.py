"""From a network's name to the network, and which image sizes it can take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cellray.errors import StudyError
from cellray.model.names import ModelFactory, find_factory

SIZE_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)
"""What the sides of images may have to be multiples of."""


def build_model(name: str, *, in_channels: int, device: torch.device | str = "cpu", **settings: object) -> nn.Module:
    """A fresh network on a device, channels last, initialised on the CPU from torch's global random state.

    On the device `meta` it has no weights, and nothing random is drawn. Its attribute `size_multiple` says what the
    sides of images must be multiples of.

    Args:
        name: A key of `MODELS`, or ``package.module:Factory``.
        in_channels: Channels of the images.
        device: Where it is to be.
        **settings: Keywords of the factory.

    Raises:
        StudyError: If there is none of that name, or it can't be built.
    """
    factory = find_factory(name)
    keywords: dict[str, Any] = {"in_channels": in_channels, **settings}
    on_meta = str(device) == "meta"
    model = _without_weights(factory, keywords) if on_meta else _built(factory, keywords, "cpu")
    if not isinstance(model, nn.Module):
        raise StudyError(f"network {name!r}: expected a torch.nn.Module, got {type(model).__name__}")
    if not hasattr(model, "size_multiple"):
        bare = model if on_meta else _without_weights(factory, keywords)
        model.size_multiple = size_multiple(bare, in_channels)  # type: ignore[assignment]
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def size_multiple(model: nn.Module, in_channels: int) -> int:
    """The least of `SIZE_MULTIPLES` such that the network keeps the size of images whose sides are multiples of it.

    Args:
        model: On the device `meta`, where that costs nothing.
        in_channels: Channels of the images.

    Raises:
        StudyError: If it is none of them, with what the network says of the last one.
    """
    why = ""
    was_training = model.training
    model.eval()
    for multiple in SIZE_MULTIPLES:
        # Odd multiples, so that none is one of twice as much.
        height, width = ((size // multiple | 1) * multiple for size in (97, 161))
        try:
            with torch.no_grad():
                out = model(torch.empty(1, in_channels, height, width, device="meta"))
            size = tuple(out.shape[-2:])
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        if size == (height, width):
            model.train(was_training)
            return multiple
        why = f"images of {height} x {width} become {size[0]} x {size[1]}"
    raise StudyError(f"it takes no image whose sides are multiples of {SIZE_MULTIPLES[-1]} or less: {why}")


def _built(factory: ModelFactory, keywords: dict[str, Any], device: str) -> nn.Module:
    with torch.device(device):
        return factory(**keywords)


def _without_weights(factory: ModelFactory, keywords: dict[str, Any]) -> nn.Module:
    """The network on `meta`; one that looks at numbers while it is built is built on the CPU first."""
    with torch.random.fork_rng(devices=[]):
        try:
            with _Undrawn():
                return _built(factory, keywords, "meta")
        except Exception:
            return _built(factory, keywords, "cpu").to("meta")


class _Undrawn(TorchFunctionMode):
    """Draws no normal numbers: on `meta`, torch would import its compiler for that, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))
