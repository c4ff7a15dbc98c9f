"""How the network in training does on the validation images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cellray.data import Dataset
from cellray.evaluation import PixelHistogram, predict_logits, same_shapes
from cellray.losses.bound import Loss
from cellray.losses.maps import as_tensor, complete_maps, stored_maps
from cellray.record import Validated
from cellray.training.team import Team


@torch.inference_mode()
def validate(
    model: nn.Module,
    loss: Loss,
    dataset: Dataset,
    indices: list[int],
    *,
    device: torch.device,
    precision: str,
    team: Team,
) -> Validated:
    """Validation loss (mean over images), and Dice at the threshold where it is highest; NaN if a logit is.

    A team's members share the images out; their losses are added in the order in which one process would have come
    to them, so that the mean is rounded alike.
    """
    order = [index for members in same_shapes(dataset, indices) for index in members]
    parts = team.merge([_share(model, loss, dataset, order[team.share(len(order))], device, precision)])
    if any(part is None for part in parts):
        return Validated(math.nan, math.nan, math.nan)
    histogram, losses = PixelHistogram(), []
    for part in filter(None, parts):
        losses += part[0]
        histogram.counts += part[1].counts
    return Validated(sum(losses) / len(losses), *histogram.best_dice())


def _share(
    model: nn.Module, loss: Loss, dataset: Dataset, indices: list[int], device: torch.device, precision: str
) -> tuple[list[float], PixelHistogram] | None:
    """Each image's loss, and the pixels of all by probability; None if a logit is no number."""
    losses, histogram = [], PixelHistogram()
    for index, logits in predict_logits(model, dataset, indices, device=device, precision=precision):
        if torch.isnan(logits).any():
            return None
        target = torch.from_numpy((dataset.labels(index) > 0).astype("float32"))
        void = dataset.void(index)
        hidden = None if void is None else torch.from_numpy(void.copy())[None, None]
        maps = _maps(loss, dataset, index, target)
        losses.append(loss(logits[None, None], target[None, None], maps, hidden).item())
        histogram.add(logits.sigmoid().numpy(), target.numpy() > 0, void)
    return losses, histogram


def _maps(loss: Loss, dataset: Dataset, index: int, target: Tensor) -> dict[str, Tensor]:
    """The maps of one whole image that the loss asks for."""
    stored = {name: as_tensor(dataset.map(name, index)[None]) for name in stored_maps(loss.maps)}
    return complete_maps(loss.maps, stored, target[None, None])
