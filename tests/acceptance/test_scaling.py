"""A node that Ray's autoscaler takes back while a study runs, since it has nothing to do."""

from __future__ import annotations

from autoscaled import run_alone
from disturb import read_events
from tiny_study import draw_images, tiny_study
from undisturbed import assert_nothing_trained_twice

from cellray.ledger import Ledger


def test_an_autoscaler_takes_an_idle_node_back_in_mid_study(tmp_path):
    """Three trials on two nodes: while the third is trained, the other node is idle for longer than it may be."""
    images = draw_images(tmp_path / "disks")
    dice = [{"label": "Dice", "loss": {"name": "dice"}}]
    training = {"steps": 900, "validate_every": 8}
    found = run_alone(tmp_path, tiny_study(images, configurations=dice, seeds=[0, 1, 2], training=training))
    assert found["code"] == 0, found["said"]
    course = found["course"]
    assert course[0] == 1 and max(course) == 3 and course[-1] == 2, course  # the head, two more, and one taken back
    ledger = Ledger(str(tmp_path / "studies"), "tiny")
    assert [record.outcome for record in ledger.records()] == ["finished"] * 3
    assert_nothing_trained_twice(ledger, read_events(tmp_path))
