"""The metrics against other people's code, where the definitions coincide.

They differ in three points, which the tests below go round or state: StarDist's threshold is inclusive and its IoU a
float32; among equally many pairs it prefers the largest IoU of all assigned cells, those below the threshold included;
and StarDist and TorchMetrics give 0 to a set without any cell and prediction, which is 1 here.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import oracle
from label_images import random_pair, row_of

from cellray.metrics import match_by_iou, summarise

JUST_ABOVE_HALF = float(np.nextafter(np.float32(0.5), np.float32(1)))


@pytest.fixture(scope="module")
def stardist_matching() -> Any:
    return oracle("stardist.matching").matching


@pytest.mark.parametrize("block", range(10))
@pytest.mark.slow
def test_pairs_above_a_threshold_are_stardists(stardist_matching, block):
    for seed in range(100 * block, 100 * block + 100):
        true, pred = random_pair(seed)
        for threshold in (0.25, 0.5, 0.75):  # exact in float32 too
            theirs = stardist_matching(true, pred, thresh=threshold)
            found = match_by_iou(true, pred, threshold=threshold, inclusive=True)
            assert (found.tp, found.fp, found.fn) == (theirs.tp, theirs.fp, theirs.fn), seed
            their_sum = theirs.mean_matched_score * theirs.tp
            if threshold >= 0.5:
                assert found.values.sum() == pytest.approx(their_sum, rel=1e-5), seed
            else:
                assert found.values.sum() >= their_sum - 1e-5, seed


@pytest.mark.slow
def test_sums_over_images_are_stardists():
    matching_dataset = oracle("stardist.matching").matching_dataset
    pairs = [random_pair(seed) for seed in range(60)]
    theirs = matching_dataset(*zip(*pairs, strict=True), thresh=JUST_ABOVE_HALF, show_progress=False)
    summary = summarise(pd.DataFrame([row_of(true, pred) for true, pred in pairs]))
    assert summary["pq"] == pytest.approx(theirs.panoptic_quality, rel=1e-6)
    assert summary["sq"] == pytest.approx(theirs.mean_matched_score, rel=1e-6)
    assert summary["rq"] == pytest.approx(theirs.f1)
    assert summary["ap_50"] == pytest.approx(theirs.accuracy)


def test_stardist_scores_an_empty_image_0(stardist_matching):
    empty = np.zeros((4, 4), dtype=np.int32)
    assert stardist_matching(empty, empty).f1 == 0
    assert summarise(pd.DataFrame([row_of(empty, empty)]))["rq"] == 1


@pytest.mark.slow
def test_panoptic_quality_is_torchmetrics():
    panoptic_quality = oracle("torchmetrics.functional.detection").panoptic_quality

    def segments(image: np.ndarray) -> torch.Tensor:
        """Category and instance of each pixel, shape (1, H, W, 2): cells are things, background is stuff."""
        return torch.from_numpy(np.stack([image > 0, image], axis=-1).astype(np.int64))[None]

    n_compared = 0
    for seed in range(300):
        true, pred = random_pair(seed)
        if not true.any() and not pred.any():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about categories that a picture doesn't show
            theirs = panoptic_quality(
                segments(pred), segments(true), things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True
            )
        summary = summarise(pd.DataFrame([row_of(true, pred)]))
        ours = [summary[name] for name in ("pq", "sq", "rq")]
        assert ours == pytest.approx(theirs.reshape(2, 3)[0].tolist(), rel=1e-5), seed
        n_compared += 1
    assert n_compared > 250


def test_pixels_and_calibration_are_torchmetrics():
    classification = oracle("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    rows, trues, preds, chances = [], [], [], []
    for seed in range(20):
        true, pred = random_pair(seed)
        probs = np.where(true > 0, rng.beta(4, 2, true.shape), rng.beta(1, 5, true.shape)).astype(np.float32)
        rows.append(row_of(true, pred, probs=probs))
        for kept, image in ((trues, true > 0), (preds, pred > 0), (chances, probs)):
            kept.append(torch.from_numpy(image.ravel()))
    true, pred, probs = torch.cat(trues).int(), torch.cat(preds).int(), torch.cat(chances)
    summary = summarise(pd.DataFrame(rows))
    assert summary["dice"] == pytest.approx(classification.binary_f1_score(pred, true).item(), rel=1e-6)
    overlap = [classification.binary_jaccard_index(p, t).item() for p, t in ((pred, true), (1 - pred, 1 - true))]
    assert summary["miou"] == pytest.approx(np.mean(overlap), rel=1e-6)
    theirs = classification.binary_calibration_error(probs, true, n_bins=10, norm="l1")
    assert summary["ece"] == pytest.approx(theirs.item(), rel=1e-5)
