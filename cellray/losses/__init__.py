"""Training losses: pure functions of raw logits and a binary mask.

Every loss takes ``(logits, target[, maps...], *, settings...)`` and returns a scalar. Logits are raw scores: the
activation happens here and only here. Maps of the true cells, which some losses need, come from `cellray.losses.maps`.
Sums over pixels run per image, in float32, and are then averaged over the batch, so that an image costs the same
whatever its neighbours in the batch are; where a loss has a setting `reduction`, a study may choose otherwise.
"""

from __future__ import annotations

from cellray.losses.compound import dice_ce_loss, dice_topk_loss, unified_focal_loss
from cellray.losses.contract import LossFunction, Positive, Reduction
from cellray.losses.lovasz import lovasz_hinge_loss
from cellray.losses.overlap import dice_loss, focal_tversky_loss, mcc_loss, tversky_loss
from cellray.losses.per_cell import blob_loss, cc_dice_ce_loss, soft_panoptic_loss
from cellray.losses.pixel import bce_loss, border_ce_loss, boundary_loss, focal_loss
from cellray.losses.presets import PRESETS
from cellray.losses.released import (
    activated_twice,
    flattened_focal_tversky_loss,
    flattened_tversky_loss,
    released_bce_loss,
    released_dice_loss,
    released_focal_loss,
    released_focal_tversky_loss,
)

__all__ = [
    "LOSSES",
    "PRESETS",
    "RELEASED",
    "LossFunction",
    "Positive",
    "Reduction",
    "activated_twice",
    "bce_loss",
    "blob_loss",
    "border_ce_loss",
    "boundary_loss",
    "cc_dice_ce_loss",
    "dice_ce_loss",
    "dice_loss",
    "dice_topk_loss",
    "flattened_focal_tversky_loss",
    "flattened_tversky_loss",
    "focal_loss",
    "focal_tversky_loss",
    "lovasz_hinge_loss",
    "mcc_loss",
    "released_bce_loss",
    "released_dice_loss",
    "released_focal_loss",
    "released_focal_tversky_loss",
    "soft_panoptic_loss",
    "tversky_loss",
    "unified_focal_loss",
]

LOSSES: dict[str, LossFunction] = {
    "bce": bce_loss,
    "dice": dice_loss,
    "focal": focal_loss,
    "tversky": tversky_loss,
    "focal_tversky": focal_tversky_loss,
    "dice_ce": dice_ce_loss,
    "dice_topk": dice_topk_loss,
    "unified_focal": unified_focal_loss,
    "lovasz_hinge": lovasz_hinge_loss,
    "mcc": mcc_loss,
    "boundary": boundary_loss,
    "border_ce": border_ce_loss,
    "blob": blob_loss,
    "cc_dice_ce": cc_dice_ce_loss,
    "soft_panoptic": soft_panoptic_loss,
}
"""Sound losses, by the name a study gives."""

RELEASED: dict[str, LossFunction] = {
    "flattened_tversky": flattened_tversky_loss,
    "flattened_focal_tversky": flattened_focal_tversky_loss,
    "released_bce": released_bce_loss,
    "released_dice": released_dice_loss,
    "released_focal": released_focal_loss,
    "released_focal_tversky": released_focal_tversky_loss,
}
"""What the reference study's code computes under those names, faults included."""
