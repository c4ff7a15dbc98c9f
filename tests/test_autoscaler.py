"""A cluster that starts its nodes when they are needed: Ray's own autoscaler, on a head without CPUs."""

from __future__ import annotations

import json

import pytest
from autoscaled import run_alone
from disturb import read_events
from tiny_study import draw_images, tiny_study
from undisturbed import assert_nothing_trained_twice

from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.places import WorkerGroup, named_groups


@pytest.mark.slow
def test_nodes_come_and_go_with_the_trials_and_a_study_that_no_group_can_hold_is_refused(tmp_path):
    images = draw_images(tmp_path / "disks")
    long = {"label": "Dice", "loss": {"name": "dice"}, "training": {"steps": 60, "validate_every": 4}}
    contenders = [long, {"label": "BCE", "loss": {"name": "bce"}}]
    plain = tiny_study(images, configurations=contenders, resources={"gpus": "auto"})
    found = run_alone(tmp_path, plain, tiny_study(images, name="gpu", resources={"gpus": 1}))
    seconds = {name: round(found[name], 1) for name in ("first_trial_s", "taken_back_s", "idle_s")}
    print(
        f"{seconds}: from the command to a trial, until an idle node is taken back, from the end until the last one is"
    )

    assert found["code"] == 0, found["said"]
    ledger = Ledger(str(tmp_path / "studies"), "tiny")
    assert [(r.outcome, r.provenance.gpus) for r in ledger.records()] == [("finished", 0.0)] * 2
    assert_nothing_trained_twice(ledger, read_events(tmp_path))  # what was on the node that died went on on another
    course = found["course"]
    while course[:4] == [1, 2, 1, 2]:  # a slow machine's node was taken back before its trial came, which got another
        course = course[2:]
    assert course[:4] == [1, 2, 3, 2] or course[:3] == [1, 3, 2], found
    assert len({event.pid for event in read_events(tmp_path) if event.what == "Dice/0"}) == 2 and found["nodes"] == 1
    assert found["refused_code"] == 2, found["refused"]
    words = "it needs 1 GPU (largest node: 0); its worker groups: cpu (up to 2 nodes with 1 CPU each)"
    assert words in found["refused"] and "set resources.gpus to 0" in found["refused"], found["refused"]
    assert Ledger(str(tmp_path / "studies"), "gpu").records() == []


def test_worker_groups_that_are_named_wrongly_are_an_error(monkeypatch):
    monkeypatch.setenv("CELLRAY_WORKER_GROUPS", json.dumps([{"name": "gpu", "nodes": 3, "CPU": 6, "GPU": 1}]))
    assert named_groups() == [WorkerGroup(name="gpu", nodes=3, CPU=6, GPU=1)]
    for text, where in (("nonsense", "the text"), ('[{"name": "gpu", "CPU": 6}]', "0.nodes")):
        monkeypatch.setenv("CELLRAY_WORKER_GROUPS", text)
        with pytest.raises(StudyError, match=f"CELLRAY_WORKER_GROUPS: {where}: .*expected"):
            named_groups()
