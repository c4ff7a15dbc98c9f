"""Losses of MONAI, kornia and segmentation_models_pytorch in cellray's form: (logits, target), one channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LibraryLoss = Callable[[Tensor, Tensor], Tensor]


def plain(module: Any) -> LibraryLoss:
    """A loss that takes one channel of logits and a mask."""

    def library_loss(logits: Tensor, target: Tensor) -> Tensor:
        return module(logits.float(), target)

    return library_loss


def of_probabilities(module: Any) -> LibraryLoss:
    """A loss that takes one channel of probabilities and a mask."""
    return lambda logits, target: module(logits.float().sigmoid(), target)


def with_classes(module: Any, channels: int = 0) -> LibraryLoss:
    """A loss of logits of two channels and of class numbers (N, H, W), or (N, 1, H, W) with `channels` 1."""

    def library_loss(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        classes = target.long() if channels else target[:, 0].long()
        return module(torch.cat([torch.zeros_like(logits), logits], dim=1), classes)

    return library_loss


def of_monai(losses: Any) -> dict[str, LibraryLoss]:
    one = {"sigmoid": True}
    return {
        "Dice": plain(losses.DiceLoss(**one)),
        "squared Dice": plain(losses.DiceLoss(squared_pred=True, **one)),
        "Jaccard": plain(losses.DiceLoss(jaccard=True, **one)),
        "batch Dice": plain(losses.DiceLoss(batch=True, **one)),
        "generalised Dice": plain(losses.GeneralizedDiceLoss(**one)),
        "Dice and CE": plain(losses.DiceCELoss(**one)),
        "Dice and focal": plain(losses.DiceFocalLoss(**one)),
        "generalised Dice and focal": plain(losses.GeneralizedDiceFocalLoss(**one)),
        "focal": plain(losses.FocalLoss()),
        "Tversky": plain(losses.TverskyLoss(alpha=0.3, beta=0.7, **one)),
        "softmax Dice": with_classes(losses.DiceLoss(softmax=True, to_onehot_y=True, include_background=False), 1),
    }


def of_kornia(losses: Any) -> dict[str, LibraryLoss]:
    return {
        "Dice": with_classes(losses.DiceLoss(average="macro")),
        "Tversky": with_classes(losses.TverskyLoss(alpha=0.3, beta=0.7)),
        "focal": with_classes(losses.FocalLoss(alpha=0.5, gamma=2.0, reduction="mean")),
        "binary focal": plain(losses.BinaryFocalLossWithLogits(alpha=0.5, gamma=2.0, reduction="mean")),
        "Lovász softmax": with_classes(losses.LovaszSoftmaxLoss()),
    }


def of_smp(losses: Any) -> dict[str, LibraryLoss]:
    return {
        "Dice": plain(losses.DiceLoss("binary")),
        "log Dice": plain(losses.DiceLoss("binary", log_loss=True)),
        "Jaccard": plain(losses.JaccardLoss("binary")),
        "Tversky": plain(losses.TverskyLoss("binary", alpha=0.3, beta=0.7)),
        "focal Tversky": plain(losses.TverskyLoss("binary", alpha=0.3, beta=0.7, gamma=4 / 3)),
        "focal": plain(losses.FocalLoss("binary", gamma=2.0)),
        "Lovász": plain(losses.LovaszLoss("binary")),
        "BCE": plain(losses.SoftBCEWithLogitsLoss()),
        "MCC": of_probabilities(losses.MCCLoss()),
    }
