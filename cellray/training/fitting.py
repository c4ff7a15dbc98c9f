"""The training loop: one model, one row an epoch, resumable to the bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cellray.data import Dataset, Split, add_maps
from cellray.device import autocast, peak_memory_mb
from cellray.errors import CheckpointError
from cellray.model import load_weights
from cellray.record import EpochRow, Validated
from cellray.study import Trial
from cellray.training.adam import Adam
from cellray.training.batch_norm import estimate_batch_norm
from cellray.training.clipping import Clipping
from cellray.training.compiling import CannotCompileError, compile_network, left_out
from cellray.training.crops import CropSampler
from cellray.training.schedule import choose_rate, rate_at, smoothing_width
from cellray.training.state import TrainingRun, from_bytes, read_as, to_bytes
from cellray.training.team import ALONE, Team
from cellray.training.validation import validate

SAVE_EVERY_S = 30.0
"""A checkpoint is also written at the end of an epoch if the last one is older than this."""
SLOW_SAVE_S, MOST_SAVING = 1.0, 0.05
"""Where a checkpoint takes longer than the first, so many are left out that saving takes this part of the time."""
OLDEST_S = 600.0
"""A checkpoint isn't left out if the last one is older: one long outage of the ledger must not cost the next hours."""

RANGE_TEST, BATCH_NORM, BALANCE = 1, 2, 3  # purposes of batches other than training itself
LOOK_EVERY = 50
"""Steps after which a GPU is waited for, to see whether a loss was no number."""
BALANCE_BATCHES = 8
"""Batches over which the gradients of a balanced loss are measured."""


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
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
    on_note: Callable[[str], None] = lambda words: None,
    until: int | None = None,
    team: Team = ALONE,
    start: bytes | None = None,
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
        on_note: Told, in a sentence, that the network was to be compiled and why it isn't.
        until: Pause after this epoch, which must be one that ends with a validation; None: train to the end.
        team: The processes that train it together, each of which calls this. They share out the rows of each batch
            and the validation images; every number is what one process would have computed, up to the order of sums.
            Only the first one loads, saves and tells.
        start: Content of the file of weights to start from; None: fresh weights.

    Raises:
        CheckpointError: If a checkpoint is damaged, or `best` is missing where training is complete.
        StudyError: If a batch has fewer crops than the team has members, or the weights don't fit the network.
    """
    return _Fitter(trial, dataset, split, device, load, save, on_epoch, team, start, on_note).fit(until)


class _Fitter:
    def __init__(
        self,
        trial: Trial,
        dataset: Dataset,
        split: Split,
        device: torch.device,
        load: Callable[[str], bytes | None],
        save: Callable[[str, bytes], None],
        on_epoch: Callable[[EpochRow], None],
        team: Team,
        start: bytes | None = None,
        on_note: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.settings, self.dataset, self.split, self.device = trial.training, dataset, split, device
        self.load, self.save, self.on_epoch, self.on_note, self.team = load, save, on_epoch, on_note, team
        self.seed = trial.seed
        team.check_batch(self.settings.batch_size)
        self.loss, self.balance = trial.loss.build(), trial.loss.balance
        add_maps(dataset, self.loss.maps)
        torch.manual_seed(trial.seed)
        self.model = trial.model.build(trial.data.channels, device)
        if start is not None:
            load_weights(self.model, start, str(trial.model.weights))
        self.stepping: Callable[[Tensor], Tensor] = team.wrap(self.model, device)
        """The network as a training step calls it."""
        self.is_compiled = False
        self.sampler = CropSampler(
            dataset,
            split.train,
            crop_px=self.settings.crop_px,
            batch_size=self.settings.batch_size,
            augment=self.settings.augment,
            seed=trial.seed,
            device=device,
            maps=self.loss.maps,
            rows=team.share(self.settings.batch_size),
            foreground=self.settings.foreground,
        )
        self.look_every = 1 if device.type == "cpu" else LOOK_EVERY
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.steps = self.settings.steps or (self.settings.epochs or 0) * self.steps_per_epoch
        self.optimizer = self._new_optimizer()
        clip = self.settings.clip
        self.clipping = None if clip is None else Clipping(clip, self.model.parameters(), self.steps, device)
        self.run = TrainingRun()
        self.best: bytes | None = None

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return Adam(self.model.parameters(), lr=1.0, weight_decay=self.settings.weight_decay, fused=True)

    @property
    def is_complete(self) -> bool:
        return self.run.step >= self.steps or self.run.diverged is not None

    def fit(self, until: int | None) -> Fit:
        is_resumed = self._resume()
        if self.settings.compile == "on" and not self.is_complete and (self.run.compiler or not is_resumed):
            self._compile()
        if not is_resumed:
            self._balance_terms()
            self._find_rate()
        saved_at, saving_s = time.monotonic(), 0.0
        while not self.is_complete and (until is None or len(self.run.history) < until):
            validated = self._epoch()
            ended_at = time.monotonic()
            age_s = ended_at - saved_at
            is_wanted = validated or age_s > SAVE_EVERY_S
            is_cheap = saving_s < max(SLOW_SAVE_S, MOST_SAVING * age_s)
            if (is_wanted and (is_cheap or age_s > OLDEST_S)) or self.is_complete or len(self.run.history) == until:
                self._checkpoint()
                saved_at = time.monotonic()
                saving_s = saved_at - ended_at
            if self.team.leads:
                self.on_epoch(self.run.history[-1])
        best = self.best or self.load("best")
        if best is None:
            if self.team.leads and self.is_complete and self.run.diverged is None:
                raise CheckpointError("best", "it isn't there")
            return Fit(self.run, None, self.is_complete)
        with read_as("best"):
            state = from_bytes(best)["model"]
            if self.is_complete and self.run.diverged is None:
                self.model.load_state_dict(state)
        return Fit(self.run, state, self.is_complete)

    def _compile(self) -> None:
        """Let steps call the compiled network, before the first of them: none changes its rounding half way."""
        try:
            if self.team.size > 1:
                raise CannotCompileError("several workers train a trial together")
            images = self.sampler.batch(self.run.step).images
            found = compile_network(self.model, images, self.device, self.settings.precision)
        except CannotCompileError as error:
            if self.team.leads:
                self.on_note(left_out(str(error)))
            return
        self.stepping, self.is_compiled = found.network, True
        self.run.compiler = found.compiler
        self.run.compile_s += found.seconds

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
            parts = self.loss.parts(*self._forward(self.model, step, BALANCE))
            for total, part in zip(sums, parts, strict=True):
                if part is not None and part.requires_grad:
                    grads = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
                    for place, grad in zip(total, grads, strict=True):
                        place.add_(0 if grad is None else grad)
        self.model.load_state_dict(fresh)
        self.team.add_up(place for total in sums for place in total)
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
            assert self.settings.lr != "tune"  # trials have the rate that was chosen
            self.run.lr = self.settings.lr
            return
        fresh = copy.deepcopy(self.model.state_dict())
        test = self.settings.range_test
        growth = (test.high / test.low) ** (1 / (test.steps - 1))
        is_premature, n_batches = test.rule == "premature", smoothing_width(test.steps)
        rates: list[float] = []
        losses: list[float] = []
        for step in range(test.steps):
            rates.append(test.low * growth**step)
            loss = self._train_step(step if is_premature else step % n_batches, rates[-1], RANGE_TEST)
            losses.append(self.team.first(loss.item()))
            least = min(losses) if is_premature else losses[step % n_batches]
            if not math.isfinite(losses[-1]) or losses[-1] > 4 * max(least, 1e-8):
                break
        self.run.range_test = {"lr": rates, "loss": losses}
        self.run.lr = choose_rate(rates, losses, smoothing_width(len(rates)) if is_premature else n_batches)
        self.model.load_state_dict(fresh)
        self.optimizer = self._new_optimizer()

    def _epoch(self) -> bool:
        """Train to the end of the current epoch, add its row to the history; True if it ended with a validation."""
        run, started, total = self.run, time.monotonic(), 0.0
        epoch = run.step // self.steps_per_epoch + 1
        first, last = run.step, min(epoch * self.steps_per_epoch, self.steps)
        for start in range(first, last, self.look_every):
            for loss in self._train(range(start, min(start + self.look_every, last))):
                run.step += 1
                if not math.isfinite(loss):
                    run.diverged = f"the loss became {loss} at step {run.step} of {self.steps} (epoch {epoch})"
                    break
                total += loss
            if run.diverged is not None:
                break
        trained_s = time.monotonic() - started
        n = run.step - first
        run.compiled_steps += n if self.is_compiled else 0
        row: EpochRow = {
            "epoch": epoch,
            "step": run.step,
            "train_loss": total / n if run.diverged is None else math.nan,
            "val_loss": math.nan,
            "val_dice": math.nan,
            "val_threshold": math.nan,
            "lr": rate_at(self.settings.schedule, run.step - 1, self.steps, run.lr),
            "seconds": 0.0,
            "images_per_s": n * self.settings.batch_size / max(trained_s, 1e-9),
            "peak_memory_mb": peak_memory_mb(self.device),
        }
        due = epoch % self.settings.validate_every == 0 or run.step >= self.steps
        if due and run.diverged is None:
            row["val_loss"], row["val_dice"], row["val_threshold"] = self._validate()
            if math.isnan(row["val_dice"]):
                # The loss is taken before the step: the epoch's last step can ruin the weights unseen.
                run.diverged = f"the logits were no numbers after step {run.step} of {self.steps} (epoch {epoch})"
            if row["val_dice"] > run.best_dice:
                run.best_dice, run.best_epoch = row["val_dice"], epoch
                if self.team.leads:
                    self.best = to_bytes({"model": self.model.state_dict()})
                    self.save("best", self.best)
        row["seconds"] = time.monotonic() - started
        run.seconds += row["seconds"]
        run.history.append(row)
        return due

    def _train(self, steps: range) -> list[float]:
        """Some steps of the training, of which a GPU is waited for at the end only; returns the loss before each.

        A step after a loss that is no number may raise what it likes: the loss says why.
        """
        losses = torch.zeros(len(steps), device=self.device)
        for k, step in enumerate(steps):
            try:
                losses[k] = self._train_step(step, rate_at(self.settings.schedule, step, self.steps, self.run.lr))
            except Exception:
                if self.team.size > 1 or losses[:k].isfinite().all():
                    raise
                return losses[:k].tolist()
        return self.team.first(losses.tolist())

    def _train_step(self, step: int, rate: float, purpose: int = 0) -> Tensor:
        """One step of the optimiser; returns the loss before it, which nobody has waited for."""
        # What dropout draws is that of the step, after a resume too.
        drawn = np.random.SeedSequence([self.seed, 3, purpose, step, self.team.rank]).generate_state(1)
        torch.manual_seed(int(drawn[0]))
        self.model.train()
        loss = self.loss(*self._forward(self.stepping, step, purpose))
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.team.size).backward()  # each member has a part of the gradient, and their average is taken
        if self.clipping is not None and purpose == 0:
            self.clipping.shorten(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss.detach()

    def _forward(
        self, network: Callable[[Tensor], Tensor], step: int, purpose: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor | None]:
        """Logits, target, maps and void pixels of a whole batch, of which each member computes its rows."""
        batch, n = self.sampler.batch(step, purpose), self.settings.batch_size
        with autocast(self.device, self.settings.precision):
            logits = network(batch.images)
        maps = {name: self.team.gather(values, n) for name, values in batch.maps.items()}
        void = None if batch.void is None else self.team.gather(batch.void, n)
        return self.team.gather(logits.float(), n), self.team.gather(batch.target, n), maps, void

    @torch.inference_mode()
    def _validate(self) -> Validated:
        n, step = self.settings.batch_norm_batches, self.run.step
        if n:
            # Batches not yet trained on at this step, and the same ones after a resume.
            batches = (self.sampler.batch(step + batch, BATCH_NORM).images for batch in range(n))
            estimate_batch_norm(self.model, batches, device=self.device, precision=self.settings.precision)
        return validate(
            self.model,
            self.loss,
            self.dataset,
            self.split.val,
            device=self.device,
            precision=self.settings.precision,
            coarse=self.settings.checkpoint == "coarse_dice",
            team=self.team,
        )

    def _checkpoint(self) -> None:
        if not self.team.leads:
            return
        state: dict[str, object] = {"run": vars(self.run)}
        if not self.is_complete:  # after that only the best weights are of use
            state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            if self.clipping is not None:
                state["norms"] = self.clipping.norms[: self.run.step]
        self.save("last", to_bytes(state))

    def _resume(self) -> bool:
        data = self.team.first(self.load("last") if self.team.leads else None)
        if data is None:
            return False
        with read_as("last"):
            state = from_bytes(data, self.device)
            self.run = TrainingRun(**state["run"])
            if not self.is_complete:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                if self.clipping is not None:
                    self.clipping.norms[: self.run.step] = state["norms"]
                self._scale_terms()
        return True
