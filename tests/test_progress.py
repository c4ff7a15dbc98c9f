"""What a sweep shows on the terminal: what is planned, what goes on, how long it takes."""

from __future__ import annotations

import io
import time

import pytest
from report_data import key_of, record, scores
from rich.console import Console
from tiny_study import tiny_study

from cellray.cli.progress import ProgressObserver
from cellray.ledger import Ledger
from cellray.observers import Tries
from cellray.record import PlannedTrial
from cellray.training.state import TrainingRun, to_bytes


def shown(tmp_path, begun, plan):
    """The line that opens a sweep of a ledger with begun trials: key -> epochs, none for a damaged checkpoint."""
    ledger = Ledger(str(tmp_path / "store"), "tiny")
    for key, epochs in begun.items():
        run = TrainingRun(history=[{"epoch": epoch} for epoch in range(1, (epochs or 0) + 1)])
        ledger.save_checkpoint(key, "last", b"?" if epochs is None else to_bytes({"run": vars(run)}))
    text = io.StringIO()
    ProgressObserver(Console(file=text, width=140), ledger).on_start(tiny_study(tmp_path), plan)
    return text.getvalue()


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        ((40, 40), "4 to do; 2 go on at epoch 40"),
        ((40, 38), "4 to do; 2 go on at epoch 38 and 40"),
        ((7, 0), "4 to do; 1 goes on at epoch 7"),
        ((None, 0), "4 to do\n"),
    ],
)
def test_a_resumed_sweep_says_where_its_trials_go_on(tmp_path, epochs, words):
    plan = [PlannedTrial("Dice", seed, key_of("Dice", seed), "e" * 16) for seed in range(4)]
    begun = {key_of("Dice", seed): n for seed, n in enumerate(epochs)}
    assert words in shown(tmp_path, begun, plan)


def test_the_time_left_counts_what_earlier_trials_took(tmp_path):
    ledger = Ledger(str(tmp_path / "store"), "tiny")
    done = record("Dice", 0, {"test": scores(0.5)})  # 60 s, and 6 s to be judged
    plan = [PlannedTrial("Dice", 0, key_of("Dice", 0), done.evaluation_key, record=done)]
    plan += [PlannedTrial("Dice", seed, key_of("Dice", seed), "e" * 16) for seed in (1, 2)]
    text = io.StringIO()
    observer = ProgressObserver(Console(file=text, width=140, force_terminal=True), ledger)
    observer.on_start(tiny_study(tmp_path), plan)
    (trial,) = [t for t in tiny_study(tmp_path, seeds=[1]).trials() if t.label == "Dice"]
    observer.on_trial_start(trial)
    end = time.monotonic() + 60
    while "2 min left" not in text.getvalue() and time.monotonic() < end:  # two of 66 s; drawn ten times a second
        time.sleep(0.02)
    observer.on_finish()
    assert "2 min left" in text.getvalue()


def test_the_trainings_that_choose_rates_have_a_bar_of_their_own(tmp_path):
    ledger = Ledger(str(tmp_path / "store"), "tiny")
    text = io.StringIO()
    observer = ProgressObserver(Console(file=text, width=140, force_terminal=True), ledger)
    observer.on_start(tiny_study(tmp_path), [PlannedTrial("Dice", 0, key_of("Dice", 0), "e" * 16)])
    observer.on_tries(Tries(0, 6))
    observer.on_tries(Tries(2, 8))
    end = time.monotonic() + 60
    while "2/8 trainings" not in text.getvalue() and time.monotonic() < end:  # drawn ten times a second
        time.sleep(0.02)
    before = len(text.getvalue())
    observer.on_tries(Tries(8, 8))
    time.sleep(0.3)
    observer.on_finish()
    assert "learning rates" in text.getvalue()[:before]
    assert "trainings" not in text.getvalue()[before:].rpartition("study")[2]
