"""What a sweep shows while it runs: a bar for the study, one for each running trial, a line for each that ended."""

from __future__ import annotations

import threading
import time
import webbrowser
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from cellray.errors import CheckpointError
from cellray.ledger import Ledger
from cellray.metrics import METRICS
from cellray.observers import Observer, Tries
from cellray.record import EpochRow, PlannedTrial, TrialRecord
from cellray.report import SweepProgress
from cellray.report.words import listing
from cellray.results import plan_of
from cellray.study import Study, Trial
from cellray.times import duration
from cellray.training import training_run

STYLES = {"finished": "green", "collapsed": "yellow", "failed": "red", "stopped": "cyan"}


class ProgressObserver(Observer):
    """Shows a sweep on a terminal; elsewhere (a file, CI) only the line of each trial that ended.

    Args:
        console: Where to.
        ledger: The study's, which has the trials that will go on.
    """

    def __init__(self, console: Console, ledger: Ledger) -> None:
        self._console, self._ledger = console, ledger
        self._progress: SweepProgress | None = None
        self._bars = Progress(
            TextColumn("{task.description}", table_column=None, markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            _Left(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._whole: TaskID | None = None
        self._tries: TaskID | None = None
        self._running: dict[tuple[str, int], TaskID] = {}
        self._share: dict[tuple[str, int], float] = {}
        self._study: Study | None = None
        self._n_done = self._n_before = self._n_planned = 0

    def on_start(self, study: Study, plan: list[PlannedTrial]) -> None:
        self._study, self._n_planned = study, _n_expected(study, plan)
        self._n_done = self._n_before = sum(planned.done or planned.is_stopped for planned in plan)
        todo = self._n_planned - self._n_done
        planned = "trials planned" if not study.adapts else "trials at most"
        self._console.print(
            f"[bold]{study.name}[/bold]: {self._n_planned} {planned}, {self._n_done} in the ledger, {todo} to do"
            f"{self._going_on(plan)}",
            highlight=False,
        )
        if todo:
            self._progress = SweepProgress(plan_of(study, plan), time.monotonic)
            for trial in plan:
                if trial.record is not None:
                    self._progress.learn(trial.record)
            page = f"{self._ledger.uri}/report/live.html"
            self._console.print(f"follow it in a browser: {page}", markup=False, highlight=False, soft_wrap=True)
            self._bars.start()
            left = self._progress.eta_s
            self._whole = self._bars.add_task("study", total=todo, state=f"0/{todo} trials", left=left)

    def _going_on(self, plan: list[PlannedTrial]) -> str:
        """How many of the trials to do were begun before, and where they go on: `; 2 go on at epoch 40`."""
        begun = set(self._ledger.names("trials"))
        epochs = []
        for key in dict.fromkeys(trial.key for trial in plan if not trial.done and trial.key in begun):
            last = self._ledger.load_checkpoint(key, "last")
            try:
                history = training_run(last).history if last is not None else []
            except CheckpointError:  # it is told when the trial comes to it
                continue
            if history:
                epochs.append(int(history[-1]["epoch"]))
        if not epochs:
            return ""
        at = listing([str(epoch) for epoch in sorted(set(epochs))])
        return f"; {len(epochs)} {'goes' if len(epochs) == 1 else 'go'} on at epoch {at}"

    def on_plan(self, study: Study, plan: list[PlannedTrial]) -> None:
        self._study, self._n_planned = study, _n_expected(study, plan)
        if self._progress is not None:
            self._progress.replan(plan_of(study, plan))
        if self._whole is not None:
            self._bars.update(self._whole, total=self._n_planned - self._n_before)

    def on_tries(self, tries: Tries) -> None:
        if self._progress is None:
            return
        self._progress.tried(tries)
        if self._tries is None:
            self._tries = self._bars.add_task("learning rates", state="", left=self._tries_left)
        done, planned = tries
        is_over = done == planned
        self._bars.update(
            self._tries, completed=done, total=planned, state=f"{done}/{planned} trainings", visible=not is_over
        )

    def _tries_left(self) -> float | None:
        row = None if self._progress is None else self._progress.tries_row()
        return None if row is None else row["eta_s"]

    def on_trial_start(self, trial: Trial) -> None:
        if self._progress is not None:
            self._progress.started(trial.label, trial.seed)

    def on_epoch(self, trial: Trial, row: EpochRow) -> None:
        who = (trial.label, trial.seed)
        if self._progress is not None:
            self._progress.epoch(*who, row)
        settings = trial.training
        total, done = (settings.steps, row["step"]) if settings.steps else (settings.epochs, row["epoch"])
        assert total is not None
        total *= len(trial.trainings)
        if who not in self._running:
            left = partial(self._trial_left, *who)
            name = f"{trial.label}, seed {trial.seed}"
            self._running[who] = self._bars.add_task(name, total=total, state="", left=left)
        state = f"epoch {row['epoch']:.0f}, loss {row['train_loss']:.3f}"
        if row["val_dice"] == row["val_dice"]:  # not NaN
            state += f", val Dice {row['val_dice']:.3f}"
        self._bars.update(self._running[who], completed=done, state=state)
        self._share[who] = 0.95 * done / total  # the rest is its evaluation
        self._show_whole()

    def on_end(self, record: TrialRecord) -> None:
        who = record.pair
        if self._progress is not None:
            self._progress.ended(record)
        if who in self._running:
            self._bars.remove_task(self._running.pop(who))
        self._share[who] = 1.0
        self._n_done += 1
        self._show_whole()
        self._console.print(self._line(record), highlight=False)

    def on_note(self, sentence: str) -> None:
        self._console.print(f"[yellow]Note:[/yellow] {escape(sentence)}", highlight=False)

    def on_finish(self) -> None:
        self._bars.stop()

    def _trial_left(self, label: str, seed: int) -> float | None:
        return None if self._progress is None else self._progress.trial_eta_s(label, seed)

    def _show_whole(self) -> None:
        if self._whole is not None:
            ended = sum(share == 1.0 for share in self._share.values())
            total = self._bars.tasks[0].total or 0
            self._bars.update(self._whole, completed=sum(self._share.values()), state=f"{ended}/{total:.0f} trials")

    def _line(self, record: TrialRecord) -> str:
        assert self._study is not None
        metric = self._study.evaluation.rank_by
        value = record.score(metric)
        score = f", {METRICS[metric].title} {value:.3f}" if value is not None else ""
        reason = f": {escape(record.reason)}" if record.reason else ""
        style = STYLES[record.outcome]
        head = f"[{self._n_done:>{len(str(self._n_planned))}}/{self._n_planned}]".replace("[", r"\[")
        return (
            f"{head} {escape(record.label)}, seed {record.seed}: "
            f"[{style}]{record.outcome}[/{style}]{reason}{score} ({record.seconds.total:.0f} s)"
        )


class PageOpener(Observer):
    """Shows the page of a sweep that runs, and then its report, in this machine's browser, as soon as it is there."""

    def __init__(self, ledger: Ledger) -> None:
        self._page = Path(ledger.uri) / "report" / "live.html"
        self._began = time.time()

    def on_start(self, study: Study, plan: list[PlannedTrial]) -> None:
        threading.Thread(target=self._open, daemon=True, name="cellray-open").start()

    def _open(self) -> None:
        while not (self._page.exists() and self._page.stat().st_mtime >= self._began - 2):
            time.sleep(0.5)
        webbrowser.open(self._page.absolute().as_uri())


class _Left(ProgressColumn):
    """The time left, as `cellray status` estimates it."""

    def render(self, task: Task) -> Text:
        seconds = task.fields["left"]()
        return Text("" if seconds is None else f"{duration(seconds)} left", style="progress.remaining")


def _n_expected(study: Study, plan: list[PlannedTrial]) -> int:
    """Trials of the whole sweep as far as can be said; one that gives seeds may end before its budget."""
    return len(plan) if study.most_trials is None else study.most_trials
