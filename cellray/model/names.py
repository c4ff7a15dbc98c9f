"""From a network's name to what builds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from cellray.errors import StudyError, unknown
from cellray.outside import find_outside, is_dotted

if TYPE_CHECKING:
    from torch import nn

ModelFactory = Callable[..., "nn.Module"]

MODELS: dict[str, str] = {
    "c_resunet": "c_resunet:CResUnet",
    "smp": "libraries:smp",
    "monai_unet": "libraries:monai_unet",
    "monai_dynunet": "libraries:monai_dynunet",
    "monai_segresnet": "libraries:monai_segresnet",
}
"""The networks that a study can name, and where each is: it takes `in_channels` and the keywords that a study may set.
To know the names, none has to be imported."""


def find_factory(name: str) -> ModelFactory:
    """The factory that a study means by `name`: a key of `MODELS`, or ``package.module:Factory``.

    A path outside the package runs that module's code.

    Raises:
        StudyError: If nothing is there, or what is there can't be called with `in_channels`.
    """
    if not is_dotted(name):
        if name not in MODELS:
            raise StudyError(unknown("model", name, MODELS))
        factory: ModelFactory = resolve_name(f"cellray.model.{MODELS[name]}")
        return factory
    factory = find_outside(name, "network")
    parameters = inspect.signature(factory).parameters
    if "in_channels" not in parameters:
        raise StudyError(f"network {name!r}: expected a parameter in_channels, got {inspect.signature(factory)}")
    return factory
