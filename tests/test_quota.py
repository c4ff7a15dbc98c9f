"""The quota of checkpoints: what goes first, what never goes, and that it is said."""

from __future__ import annotations

import os

import pytest

from cellray.ledger import Ledger
from cellray.sweep.quota import LOG, keep_within

MB = 1_000_000


@pytest.fixture
def ledger(tmp_path):
    """Three trials of 10 MB each: `a` finished, `b` stopped a little later, `c` still running."""
    ledger = Ledger(str(tmp_path), "study")
    for age, key in enumerate("abc"):
        for path, mb in (("checkpoints/best.pt", 4), ("checkpoints/last.pt", 5), ("overlays/test.worst.png", 1)):
            ledger.write(f"trials/{key}/{path}", bytes(mb * MB))
            os.utime(f"{tmp_path}/study/trials/{key}/{path}", (1000 + age, 1000 + age))
        ledger.write(f"trials/{key}/images.parquet", bytes(50 * MB))  # no checkpoint: doesn't count
    return ledger


def files(ledger):
    return {file.path.removeprefix("trials/") for file in ledger.files("trials")}


def test_nothing_goes_while_there_is_room(ledger):
    before = files(ledger)
    assert keep_within(ledger, 0.03, {"a", "b"}) is None
    assert files(ledger) == before and not ledger.exists(LOG)


def test_the_oldest_last_states_go_first_and_then_the_oldest_overlays(ledger):
    before = files(ledger)
    said = keep_within(ledger, 0.026, {"a", "b"})  # 30 MB are there: one of 5 is enough
    assert before - files(ledger) == {"a/checkpoints/last.pt"}
    assert said == "checkpoints_gb 0.026: removed 1 files, 0.005 GB (removed.txt names them)"
    assert keep_within(ledger, 0.0195, {"a", "b"}) is not None  # 25: the other last state is not quite enough
    assert before - files(ledger) == {"a/checkpoints/last.pt", "b/checkpoints/last.pt", "a/overlays/test.worst.png"}
    assert ledger.read(LOG).decode().splitlines() == [
        "trials/a/checkpoints/last.pt 5000000",
        "trials/b/checkpoints/last.pt 5000000",
        "trials/a/overlays/test.worst.png 1000000",
    ]


def test_best_weights_and_running_trials_are_never_touched(ledger):
    before = files(ledger)
    said = keep_within(ledger, 0.001, {"a", "b"})
    gone = before - files(ledger)
    assert gone == {f"{key}/{name}" for key in "ab" for name in ("checkpoints/last.pt", "overlays/test.worst.png")}
    assert "0.018 GB are left, since the best weights of every trial are kept" in said
