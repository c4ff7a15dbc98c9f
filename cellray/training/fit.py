"""The training loop: one model, one row an epoch, resumable to the bit."""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cellray.data import Dataset, Split, add_maps
from cellray.device import autocast, peak_memory_mb
from cellray.evaluation import PixelHistogram, predict_logits
from cellray.losses.maps import as_tensor, complete_maps, stored_maps
from cellray.model import build_model
from cellray.study import Trial
from cellray.training.crops import CropSampler
from cellray.training.schedule import choose_rate, rate_at

SAVE_EVERY_S = 30.0
"""A checkpoint is also written at the end of an epoch if the last one is older than this."""

RANGE_TEST, BATCH_NORM, BALANCE = 1, 2, 3  # purposes of batches other than training itself
BALANCE_BATCHES = 8
"""Batches over which the gradients of a balanced loss are measured."""

Row = dict[str, float]


@dataclass
class TrainingRun:
    """Where a training stands; what the checkpoint `last` holds."""

    step: int = 0
    lr: float = 0.0
    """Peak learning rate, given or found by the range test."""
    range_test: dict[str, list[float]] | None = None
    term_scales: list[float] | None = None
    """What each term of a balanced loss is multiplied by, besides its weight."""
    history: list[Row] = field(default_factory=list)
    best_dice: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    diverged: str | None = None
    """Why training ended early: where the loss stopped being a number."""


@dataclass
class Fit:
    """A trained model: its best weights by validation Dice, and how it came about."""

    run: TrainingRun
    best_state: dict[str, Tensor] | None
    """Weights and batch-norm statistics at the best validation; None if none came before divergence."""
    is_complete: bool
    """Whether training came to its end, by its last step or by divergence."""


def fit(
    trial: Trial,
    dataset: Dataset,
    split: Split,
    *,
    device: torch.device,
    load: Callable[[str], bytes | None],
    save: Callable[[str, bytes], None],
    on_epoch: Callable[[Row], None] = lambda row: None,
    until: int | None = None,
) -> Fit:
    """Train one configuration with one seed, going on from the checkpoint `last` where there is one.

    Args:
        trial: What to train.
        dataset: The training set.
        split: Its parts.
        device: Where to train.
        load: Returns a checkpoint's bytes by name (`last`, `best`), or None.
        save: Keeps a checkpoint's bytes under a name, all or nothing.
        on_epoch: Told each epoch's row.
        until: Pause after this epoch, which must be one that ends with a validation; None: train to the end.
    """
    return _Fitter(trial, dataset, split, device, load, save, on_epoch).fit(until)


class _Fitter:
    def __init__(
        self,
        trial: Trial,
        dataset: Dataset,
        split: Split,
        device: torch.device,
        load: Callable[[str], bytes | None],
        save: Callable[[str, bytes], None],
        on_epoch: Callable[[Row], None],
    ) -> None:
        self.settings, self.dataset, self.split, self.device = trial.training, dataset, split, device
        self.load, self.save, self.on_epoch = load, save, on_epoch
        self.loss, self.balance = trial.loss.build(), trial.loss.balance
        add_maps(dataset, self.loss.maps)
        torch.manual_seed(trial.seed)
        self.model = build_model(
            trial.model.name,
            base_features=trial.model.base_features,
            in_channels=trial.data.channels,
            device=device,
        )
        self.sampler = CropSampler(
            dataset,
            split.train,
            crop_px=self.settings.crop_px,
            batch_size=self.settings.batch_size,
            augment=self.settings.augment,
            seed=trial.seed,
            device=device,
            maps=self.loss.maps,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.steps = self.settings.steps or (self.settings.epochs or 0) * self.steps_per_epoch
        self.optimizer = self._new_optimizer()
        self.run = TrainingRun()
        self.best: bytes | None = None

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=1.0, weight_decay=self.settings.weight_decay, fused=True)

    @property
    def is_complete(self) -> bool:
        return self.run.step >= self.steps or self.run.diverged is not None

    def fit(self, until: int | None) -> Fit:
        if not self._resume():
            self._balance_terms()
            self._find_rate()
        saved_at = time.monotonic()
        while not self.is_complete and (until is None or len(self.run.history) < until):
            validated = self._epoch()
            if validated or self.is_complete or time.monotonic() - saved_at > SAVE_EVERY_S:
                self._checkpoint()
                saved_at = time.monotonic()
            self.on_epoch(self.run.history[-1])
        best = self.best or self.load("best")
        state = torch.load(io.BytesIO(best), weights_only=True)["model"] if best else None
        return Fit(self.run, state, self.is_complete)

    def _balance_terms(self) -> None:
        """Scale the terms to gradients of one length over the fresh network's weights, if the study asks for it.

        A term's length is the norm of its mean gradient over some batches. Terms without a gradient stay as they are.
        """
        if self.balance != "gradient":
            return
        fresh = copy.deepcopy(self.model.state_dict())  # batch norm keeps statistics of what it saw
        self.model.train()
        weights = list(self.model.parameters())
        sums = [[torch.zeros_like(w) for w in weights] for _ in self.loss.terms]
        for step in range(BALANCE_BATCHES):
            batch = self.sampler.batch(step, BALANCE)
            with autocast(self.device, self.settings.precision):
                logits = self.model(batch.images)
            for total, part in zip(sums, self.loss.parts(logits.float(), batch.target, batch.maps), strict=True):
                if part is not None and part.requires_grad:
                    grads = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
                    for place, grad in zip(total, grads, strict=True):
                        place.add_(0 if grad is None else grad)
        self.model.load_state_dict(fresh)
        lengths = [torch.stack([place.norm() for place in total]).norm().item() / BALANCE_BATCHES for total in sums]
        self.run.term_scales = [1 / n if math.isfinite(n) and n > 0 else 1.0 for n in lengths]
        self._scale_terms()

    def _scale_terms(self) -> None:
        scales = self.run.term_scales
        if scales is not None:
            terms = zip(self.loss.terms, scales, strict=True)
            self.loss = replace(self.loss, terms=tuple(replace(t, weight=t.weight * scale) for t, scale in terms))

    def _find_rate(self) -> None:
        """Set the peak learning rate, by a range test on a copy of the fresh model if the study asks for one."""
        if self.settings.lr != "range_test":
            self.run.lr = float(self.settings.lr)
            return
        fresh = copy.deepcopy(self.model.state_dict())
        test = self.settings.range_test
        growth = (test.high / test.low) ** (1 / (test.steps - 1))
        rates, losses = [], []
        for step in range(test.steps):
            rates.append(test.low * growth**step)
            losses.append(self._train_step(step, rates[-1], RANGE_TEST))
            if not math.isfinite(losses[-1]) or losses[-1] > 4 * max(min(losses), 1e-8):
                break
        self.run.range_test = {"lr": rates, "loss": losses}
        self.run.lr = choose_rate(rates, losses)
        self.model.load_state_dict(fresh)
        self.optimizer = self._new_optimizer()

    def _epoch(self) -> bool:
        """Train to the end of the current epoch, add its row to the history; True if it ended with a validation."""
        run, started, total = self.run, time.monotonic(), 0.0
        epoch = run.step // self.steps_per_epoch + 1
        first, last = run.step, min(epoch * self.steps_per_epoch, self.steps)
        while run.step < last:
            rate = rate_at(self.settings.schedule, run.step, self.steps, run.lr)
            loss = self._train_step(run.step, rate)
            run.step += 1
            if not math.isfinite(loss):
                run.diverged = f"the loss became {loss} at step {run.step} of {self.steps} (epoch {epoch})"
                break
            total += loss
        trained_s = time.monotonic() - started
        n = run.step - first
        row: Row = {
            "epoch": epoch,
            "step": run.step,
            "train_loss": total / n if run.diverged is None else math.nan,
            "val_loss": math.nan,
            "val_dice": math.nan,
            "val_threshold": math.nan,
            "lr": rate,
            "seconds": 0.0,
            "images_per_s": n * self.settings.batch_size / max(trained_s, 1e-9),
            "peak_memory_mb": peak_memory_mb(self.device),
        }
        due = epoch % self.settings.validate_every == 0 or run.step >= self.steps
        if due and run.diverged is None:
            row |= self._validate()
            if math.isnan(row["val_dice"]):
                # The loss is taken before the step: the epoch's last step can ruin the weights unseen.
                run.diverged = f"the logits were no numbers after step {run.step} of {self.steps} (epoch {epoch})"
            if row["val_dice"] > run.best_dice:
                run.best_dice, run.best_epoch = row["val_dice"], epoch
                self.best = _to_bytes({"model": self.model.state_dict()})
                self.save("best", self.best)
        row["seconds"] = time.monotonic() - started
        run.seconds += row["seconds"]
        run.history.append(row)
        return due

    def _train_step(self, step: int, rate: float, purpose: int = 0) -> float:
        """One step of the optimiser; returns the loss before it."""
        batch = self.sampler.batch(step, purpose)
        self.model.train()
        with autocast(self.device, self.settings.precision):
            logits = self.model(batch.images)
        loss = self.loss(logits.float(), batch.target, batch.maps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def _validate(self) -> Row:
        """Validation loss (mean over images), and Dice at the threshold where it is highest; NaN if a logit is."""
        self._estimate_batch_norm()
        histogram, losses = PixelHistogram(), []
        predictions = predict_logits(
            self.model, self.dataset, self.split.val, device=self.device, precision=self.settings.precision
        )
        for index, logits in predictions:
            if torch.isnan(logits).any():
                return {"val_loss": math.nan, "val_dice": math.nan, "val_threshold": math.nan}
            labels = self.dataset.labels(index)
            target = torch.from_numpy((labels > 0).astype("float32"))
            losses.append(self.loss(logits[None, None], target[None, None], self._maps(index, target)).item())
            histogram.add(logits.sigmoid().numpy(), target.numpy() > 0)
        dice, threshold = histogram.best_dice()
        return {"val_loss": sum(losses) / len(losses), "val_dice": dice, "val_threshold": threshold}

    def _maps(self, index: int, target: Tensor) -> dict[str, Tensor]:
        """The maps of one whole image that the loss asks for."""
        stored = {name: as_tensor(self.dataset.map(name, index)[None]) for name in stored_maps(self.loss.maps)}
        return complete_maps(self.loss.maps, stored, target[None, None])

    def _estimate_batch_norm(self) -> None:
        """Set the running statistics of batch norm to their plain average over some training batches.

        With c-ResUnet's momentum of 0.01 the running averages of a short training are still close to their initial
        values, and evaluation mode is nonsense while the training loss looks fine.
        """
        layers = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not self.settings.batch_norm_batches or not layers:
            return
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
        self.model.train()
        for batch in range(self.settings.batch_norm_batches):
            # Batches not yet trained on at this step, and the same ones after a resume.
            images = self.sampler.batch(self.run.step + batch, BATCH_NORM).images
            with autocast(self.device, self.settings.precision):
                self.model(images)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def _checkpoint(self) -> None:
        state: dict[str, Any] = {"run": vars(self.run)}
        if not self.is_complete:  # after that only the best weights are of use
            state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.save("last", _to_bytes(state))

    def _resume(self) -> bool:
        data = self.load("last")
        if data is None:
            return False
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=self.device, weights_only=True)
        self.run = TrainingRun(**state["run"])
        if not self.is_complete:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._scale_terms()
        return True


def training_run(last: bytes) -> TrainingRun:
    """Where a training stands, from the bytes of its checkpoint `last`."""
    state = torch.load(io.BytesIO(last), map_location="cpu", weights_only=True)
    return TrainingRun(**state["run"])


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
