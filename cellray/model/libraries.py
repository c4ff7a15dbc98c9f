"""Networks of other libraries, which the extra `networks` installs; each library is imported only where one is used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from cellray.errors import StudyError, unknown

Probability = Annotated[float, Field(ge=0, lt=1)]
Norm = Literal["instance", "batch"]


def smp(
    in_channels: int,
    *,
    architecture: str = "Unet",
    encoder: str = "resnet34",
    depth: Annotated[int, Field(ge=3, le=5)] = 5,
    options: Mapping[str, object] = MappingProxyType({}),
) -> nn.Module:
    """Any architecture and encoder of segmentation_models_pytorch.

    Args:
        in_channels: Channels of the image.
        architecture: Such as ``Unet``, ``UnetPlusPlus``, ``FPN``, ``DeepLabV3Plus``, ``Segformer``.
        encoder: Such as ``resnet34``, ``efficientnet-b0``, ``tu-convnext_tiny`` (``tu-``: a model of timm).
        depth: How often the encoder halves the image.
        options: Further keywords of the architecture, such as ``decoder_channels``.

    Raises:
        StudyError: If the library isn't installed, or has no such architecture or encoder.
    """
    module = library("segmentation_models_pytorch")
    names = {c.__name__.lower(): c.__name__ for c in vars(module).values() if _is_architecture(c)}
    if architecture.lower() not in names:
        raise StudyError(unknown("architecture", architecture, names.values()))
    keywords: dict[str, object] = {"encoder_depth": depth}
    if architecture.lower() in ("unet", "unetplusplus", "manet"):
        keywords["decoder_channels"] = (256, 128, 64, 32, 16)[:depth]
    taken = {"encoder_name", "encoder_weights", "in_channels", "classes", "encoder_depth", "activation", "aux_params"}
    for name in taken & options.keys():
        raise StudyError(f"options.{name} isn't for a study to set")
    try:
        return module.create_model(
            architecture,
            encoder_name=encoder,
            encoder_weights=None,  # nothing is downloaded: `model.weights` names a file
            in_channels=in_channels,
            classes=1,
            **{**keywords, **options},
        )
    except Exception as error:
        words = str(error).strip("\"'").split("supported encoders")[0].splitlines()[0].rstrip(" ,:")
        raise StudyError(f"{architecture} with the encoder {encoder!r} and depth {depth}: {words}") from error


def monai_unet(
    in_channels: int,
    *,
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    residual_units: Annotated[int, Field(ge=0)] = 2,
    norm: Norm = "instance",
    dropout: Probability = 0.0,
) -> nn.Module:
    """MONAI's U-Net with residual units.

    Args:
        in_channels: Channels of the image.
        channels: Width of each level; the image is halved from each to the next.
        residual_units: In each level; 0: plain convolutions.
        norm: Instance or batch normalisation.
        dropout: Probability.
    """
    return library("monai.networks.nets").UNet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=1,
        channels=tuple(channels),
        strides=(2,) * (len(channels) - 1),
        num_res_units=residual_units,
        norm=norm.upper(),
        dropout=dropout,
    )


def monai_dynunet(
    in_channels: int,
    *,
    filters: Sequence[int] = (32, 64, 128, 256, 512),
    residual: bool = False,
    norm: Norm = "instance",
    dropout: Probability = 0.0,
) -> nn.Module:
    """MONAI's DynUNet, the U-Net of nnU-Net, without deep supervision.

    Args:
        in_channels: Channels of the image.
        filters: Width of each level; the image is halved from each to the next.
        residual: Residual blocks in the encoder.
        norm: Instance or batch normalisation.
        dropout: Probability.
    """
    halvings = (2,) * (len(filters) - 1)
    return library("monai.networks.nets").DynUNet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=1,
        kernel_size=(3,) * len(filters),
        strides=(1, *halvings),
        upsample_kernel_size=halvings,
        filters=tuple(filters),
        dropout=dropout or None,
        norm_name=(norm.upper(), {"affine": True}),
        res_block=residual,
    )


def monai_segresnet(
    in_channels: int,
    *,
    filters: Annotated[int, Field(ge=8, multiple_of=8)] = 16,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    dropout: Probability = 0.0,
) -> nn.Module:
    """MONAI's SegResNet, with group normalisation.

    Args:
        in_channels: Channels of the image.
        filters: Width of the first level; each next one has twice as many.
        blocks_down: Residual blocks of each level of the encoder; the image is halved from each to the next.
        blocks_up: Of the decoder, one level fewer.
        dropout: Probability.
    """
    return library("monai.networks.nets").SegResNet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=1,
        init_filters=filters,
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        dropout_prob=dropout or None,
    )


def library(name: str) -> Any:
    """Another library's module.

    Raises:
        StudyError: If it isn't installed, or doesn't go with what is.
    """
    try:
        return _imported(name)
    except ImportError as error:
        package = name.partition(".")[0]
        words = f"this network needs {package}: pip install 'cellray[networks]'"
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        raise StudyError(words if missing else f"{words} (now: {str(error).splitlines()[0]})") from error


def _imported(name: str) -> Any:
    """The module, also where torchvision's compiled part is the one for GPUs and torch is the one for CPUs.

    Then torchvision lacks its operators (for boxes; no network here has any), and its import ends where it describes
    them. Each gets its name, and nothing else.
    """
    while True:
        try:
            return import_module(name)
        except RuntimeError as error:
            lacking = re.fullmatch(r"operator (torchvision::\w+) does not exist", str(error))
            if lacking is None:
                raise
            torch.library.define(lacking[1], "() -> ()")


def _is_architecture(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)
