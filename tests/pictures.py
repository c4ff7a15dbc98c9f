"""Small datasets in memory, and trials short enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cellray.data import Split
from cellray.losses.maps import STORED
from cellray.study import DataConfig, DatasetConfig, EvaluationConfig, LossConfig, ModelConfig, TrainingConfig, Trial


class Pictures:
    """What training and evaluation ask of a `cellray.data.Dataset`, over arrays; remembers who was looked at."""

    name = "pictures"
    fingerprint = "0" * 16
    has_void = False

    def __init__(self, images: list[np.ndarray], labels: list[np.ndarray], *, diameter_px: float = 10.0) -> None:
        self.images, self.truth, self.diameter_px = images, labels, diameter_px
        self.names = [f"im{k:02d}" for k in range(len(images))]
        self.n_objects = [int(truth.max(initial=0)) for truth in labels]
        self.groups = self.splits = [""] * len(images)
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        self.seen.append(i)
        return self.images[i]

    def labels(self, i: int) -> np.ndarray:
        self.seen.append(i)
        return self.truth[i]

    def void(self, i: int) -> np.ndarray | None:
        return None

    def map(self, name: str, i: int) -> np.ndarray:
        return STORED[name](self.truth[i])

    def map_folder(self, name: str) -> Path:
        return Path()  # is there: nothing to store for arrays


def disks(rng: np.random.Generator, height: int, width: int, *, n: int = 4, radius: float = 5.0) -> np.ndarray:
    """Labels of up to n disks that neither touch nor reach over the border."""
    labels, (y, x) = np.zeros((height, width), np.uint16), np.indices((height, width))
    for _ in range(20 * n):
        cy, cx = rng.uniform(radius + 1, height - radius - 1), rng.uniform(radius + 1, width - radius - 1)
        distance = np.hypot(y - cy, x - cx)
        if not labels[distance <= radius + 2].any():
            labels[distance <= radius] = labels.max() + 1
        if labels.max() == n:
            break
    return labels


def cells(n: int = 12, height: int = 48, width: int = 40, *, channels: int = 1, seed: int = 0) -> Pictures:
    """Bright disks on a darker noisy ground."""
    rng = np.random.default_rng(seed)
    truth = [disks(rng, height, width) for _ in range(n)]
    images = [
        np.clip(rng.normal(60, 15, (height, width, channels)) + 120 * (labels > 0)[..., None], 0, 255).astype(np.uint8)
        for labels in truth
    ]
    return Pictures(images, truth)


def thirds(dataset: Pictures) -> Split:
    """The first two thirds to train on, then a sixth each to select and to judge."""
    n = len(dataset)
    a, b = 2 * n // 3, 5 * n // 6
    return Split(list(range(a)), list(range(a, b)), list(range(b, n)), "split")


def tiny_trial(*, loss: Any = "dice", seed: int = 0, base_features: int = 2, **training: Any) -> Trial:
    """A trial on 32-pixel crops with a fixed rate; `training` changes its training settings."""
    settings = {"crop_px": 32, "batch_size": 4, "lr": 0.01, "batch_norm_batches": 3, "precision": "float32"}
    if "steps" not in training:
        settings["epochs"] = 4
    return Trial(
        study="test",
        label="it",
        seed=seed,
        protocol="strict",
        data=DataConfig(train=DatasetConfig(name="pictures", path="nowhere"), channels=1),
        model=ModelConfig(base_features=base_features),
        loss=LossConfig(name=loss) if isinstance(loss, str) else loss,
        training=TrainingConfig(**(settings | training)),
        evaluation=EvaluationConfig(),
    )
