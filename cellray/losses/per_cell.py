"""Losses that judge each cell for itself, however small, from maps of the true cells.

Ids are per image and may have gaps. Sums over the pixels of a cell run in float64: they are scattered additions, whose
rounding would grow with the number of pixels.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from cellray.losses.compound import dice_ce_loss
from cellray.losses.contract import Positive, Share, check_shapes, wrong_logit
from cellray.losses.overlap import dice
from cellray.torch_later import Tensor, functional, torch

IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
"""Neighbours in a stack of images: the eight around a pixel, none in other images."""
IN_PLANE[1] = True


def blob_loss(
    logits: Tensor,
    target: Tensor,
    components: Tensor,
    void: Tensor | None = None,
    *,
    global_weight: float = 2.0,
    blob_weight: float = 1.0,
    smooth: Positive = 1e-5,
) -> Tensor:
    """Blob loss over Dice + cross-entropy: ``global_weight * L + blob_weight * (mean of L_i over the cells)``.

    L is `dice_ce_loss`. L_i is the same of an image in which all cells but the i-th are left out: their pixels weigh 0,
    in the sums and in the number of pixels that cross-entropy is divided by.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        components: Id of the cell at each pixel, 0 on background, int64, same shape.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        global_weight: Weight of the whole image, >= 0; alpha in the paper.
        blob_weight: Weight of the mean over the cells, >= 0; beta in the paper.
        smooth: Of the Dice losses, in pixels, > 0.

    Returns:
        Scalar >= 0, averaged over the images; 0 at a perfect prediction, with or without cells. An image without cells
        counts as one blob without pixels: its second term is Dice + cross-entropy of its background.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Kofler et al. 2023, https://arxiv.org/abs/2205.08209
    """
    check_shapes(logits, target, components=components)
    wrong, cost = _wrong_and_cost(logits, target)
    n_ids = int(components.max()) + 1
    area, missed, cell_cost = (_sum_by_id(components, n_ids, x) for x in (_counting(cost, void), wrong, cost))
    # Id 0 is the background, which belongs to the image of every blob.
    spurious, rest_cost = missed[:, :1], cell_cost[:, :1]
    pixels = (area[:, :1] + area).clamp_min(1)
    blobs = dice(area - missed, spurious, missed, smooth) + (rest_cost + cell_cost) / pixels
    none = torch.zeros_like(spurious)
    empty = dice(none, spurious, none, smooth) + rest_cost / area[:, :1].clamp_min(1)
    each = _mean_over_cells(blobs, area > 0, without_cells=empty[:, 0])
    return global_weight * dice_ce_loss(logits, target, void, smooth=smooth) + blob_weight * each.mean().float()


def cc_dice_ce_loss(
    logits: Tensor,
    target: Tensor,
    components: Tensor,
    voronoi: Tensor,
    void: Tensor | None = None,
    *,
    global_weight: float = 1.0,
    region_weight: float = 1.0,
    smooth: Positive = 1e-5,
) -> Tensor:
    """CC-Dice-CE: Dice + cross-entropy of the image, and of the region around each cell.

    ``global_weight * L + region_weight * (mean of L_i over the cells)``: L is `dice_ce_loss`, L_i the same inside R_i,
    the pixels that lie nearer to cell i than to any other.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        components: Id of the cell at each pixel, 0 on background, int64, same shape.
        voronoi: Id of the nearest cell at each pixel, int64, same shape. The region of a cell that has no pixel in
            `components` (it lies outside the crop) counts in L alone.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        global_weight: Weight of the whole image, >= 0.
        region_weight: Weight of the mean over the regions, >= 0.
        smooth: Of the Dice losses, in pixels, > 0.

    Returns:
        Scalar >= 0, averaged over the images; 0 at a perfect prediction, with or without cells. An image without cells
        is one region.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Jaus et al. 2024, https://arxiv.org/abs/2410.18684 (the Voronoi regions, for metrics).
    """
    check_shapes(logits, target, components=components, voronoi=voronoi)
    wrong, cost = _wrong_and_cost(logits, target)
    y = target.float()
    n_ids = int(torch.maximum(components, voronoi).max()) + 1
    hit, missed, spurious, costs, pixels = (
        _sum_by_id(voronoi, n_ids, x)
        for x in (y - y * wrong, y * wrong, wrong - y * wrong, cost, _counting(cost, void))
    )
    regions = dice(hit, spurious, missed, smooth) + costs / pixels.clamp_min(1)
    empty = dice(hit.sum(1), spurious.sum(1), missed.sum(1), smooth) + costs.sum(1) / pixels.sum(1).clamp_min(1)
    each = _mean_over_cells(regions, _present(components, n_ids), without_cells=empty)
    return global_weight * dice_ce_loss(logits, target, void, smooth=smooth) + region_weight * each.mean().float()


def soft_panoptic_loss(
    logits: Tensor,
    target: Tensor,
    components: Tensor,
    voronoi: Tensor,
    *,
    steepness: Positive = 10.0,
    iou_threshold: Share = 0.5,
    smooth: Positive = 0.1,
    cell_area_px: Positive = 1257.0,
) -> Tensor:
    """One minus a soft panoptic quality: how many cells are found, and how well.

    ``1 - (sum q_i u_i + smooth) / (sum q_i + sum (1 - q_i) / 2 + F / 2 + smooth)``. u_i is the soft IoU of cell i with
    the prediction inside R_i, the pixels nearer to it than to any other cell. ``q_i = sigmoid(steepness * (u_i -
    iou_threshold))`` says how far the cell counts as found; it is divided by its value at u_i = 1, so that a perfect
    prediction costs 0 at any steepness. F is the soft mass of the predicted objects (8-connected pixels of p > 0.5)
    that touch no cell, in cells: divided by the mean area of the image's cells. Which pixels form such an object is
    found on the CPU and has no gradient.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        components: Id of the cell at each pixel, 0 on background, int64, same shape.
        voronoi: Id of the nearest cell at each pixel, int64, same shape. In the region of a cell that has no pixel in
            `components` (it lies outside the crop), only spurious objects count.
        steepness: Of q, > 0.
        iou_threshold: Soft IoU of a cell that is half found, in [0, 1].
        smooth: In cells, > 0. Makes an image without cells cost 0 if nothing is predicted there, and more with every
            spurious object; p <= 0.5 costs nothing there.
        cell_area_px: Area of a cell in images without any, in pixels, > 0; by default a disk 40 px across.

    Returns:
        Scalar in [0, 1], averaged over the images; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Kirillov et al. 2019, https://arxiv.org/abs/1801.00868 (panoptic quality itself).
    """
    check_shapes(logits, target, components=components, voronoi=voronoi)
    p, y = logits.float().sigmoid(), target.float()
    n_ids = int(torch.maximum(components, voronoi).max()) + 1
    area = _sum_by_id(components, n_ids, (components > 0).float())
    hit, spurious = _sum_by_id(voronoi, n_ids, p * y), _sum_by_id(voronoi, n_ids, p * (1 - y))
    present = area > 0
    iou = hit / (area + spurious).clamp_min(1)
    found = (steepness * (iou - iou_threshold)).sigmoid() / _sigmoid(steepness * (1 - iou_threshold))
    n_cells = present.sum(1)
    cell_area = torch.where(n_cells > 0, area.sum(1) / n_cells.clamp_min(1), cell_area_px)
    n_spurious = (p * _spurious_objects(p.detach(), y)).double().flatten(1).sum(1) / cell_area
    quality = (found * iou * present).sum(1) + smooth
    out_of = ((0.5 + 0.5 * found) * present).sum(1) + 0.5 * n_spurious + smooth
    return (1 - quality / out_of).mean().float()


def _wrong_and_cost(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the wrong class and cross-entropy of each pixel."""
    wrong = wrong_logit(logits.float(), target.float())
    return wrong.sigmoid(), functional.softplus(wrong)


def _sum_by_id(ids: Tensor, n_ids: int, values: Tensor) -> Tensor:
    """Sum of `values` over the pixels of each id, shape (N, n_ids), float64."""
    first = n_ids * torch.arange(len(ids), device=ids.device)
    places = (ids.flatten(1) + first[:, None]).flatten()
    sums = torch.zeros(len(ids) * n_ids, dtype=torch.float64, device=ids.device)
    return sums.index_add(0, places, values.double().flatten()).view(len(ids), n_ids)


def _counting(pixels: Tensor, void: Tensor | None) -> Tensor:
    """1 at each pixel, 0 where it is void."""
    ones = torch.ones_like(pixels)
    return ones if void is None else ones.masked_fill(void, 0)


def _present(ids: Tensor, n_ids: int) -> Tensor:
    """Whether each id has a pixel, shape (N, n_ids)."""
    present = torch.zeros(len(ids), n_ids, dtype=torch.bool, device=ids.device)
    return present.scatter_(1, ids.flatten(1), True)


def _mean_over_cells(values: Tensor, present: Tensor, without_cells: Tensor) -> Tensor:
    """Mean of values (N, n_ids) over the ids > 0 that are present, shape (N,)."""
    values, present = values[:, 1:], present[:, 1:]
    n_cells = present.sum(1)
    return torch.where(n_cells > 0, (values * present).sum(1) / n_cells.clamp_min(1), without_cells)


def _spurious_objects(p: Tensor, y: Tensor) -> Tensor:
    """1 at the pixels of predicted objects that touch no cell, of the shape of p."""
    objects, n_objects = ndimage.label((p[:, 0] > 0.5).cpu().numpy(), IN_PLANE)
    spurious = np.ones(n_objects + 1, dtype=np.float32)
    spurious[0] = 0
    spurious[objects[y[:, 0].cpu().numpy() > 0.5]] = 0
    return torch.from_numpy(spurious[objects])[:, None].to(p.device)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
