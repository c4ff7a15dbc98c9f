"""A cluster that starts its nodes when they are needed: Ray's own autoscaler, on a head without CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import autoscaled
import pytest
import ray
from conftest import skip_or_fail
from tiny_study import draw_images, tiny_study

from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.places import WorkerGroup, named_groups


@pytest.mark.slow
def test_a_study_starts_nodes_and_one_that_no_group_can_hold_is_refused(tmp_path):
    if os.geteuid() != 0 or subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode:
        skip_or_fail("Ray's autoscaler is tried in namespaces of its own: run this as root, with unshare and ip.")
    images = draw_images(tmp_path / "disks")
    (tmp_path / "tiny.yaml").write_text(tiny_study(images, resources={"gpus": "auto"}).dump_yaml())
    (tmp_path / "gpu.yaml").write_text(tiny_study(images, name="gpu", resources={"gpus": 1}).dump_yaml())
    (tmp_path / "example.yaml").write_text(json.dumps(autoscaled.MISSING_FILE))
    provider = Path(ray.__file__).parent / "autoscaler/_private/fake_multi_node"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "COLUMNS"))}
    env |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    env |= {
        "CELLRAY_CACHE": str(tmp_path / "cache"),
        "RAY_TMPDIR": "/tmp",
        "RAY_USAGE_STATS_ENABLED": "0",
        "COLUMNS": "200",
    }
    done = subprocess.run(
        ["unshare", *autoscaled.NAMESPACES, "bash", "-c", autoscaled.ALONE, "bash",
         str(provider), str(tmp_path), sys.executable, autoscaled.__file__],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    print(f"{found['first_trial_s']:.1f} s from the command to the first trial, {found['idle_s']:.1f} s to scale down")

    assert found["code"] == 0, found["said"]
    records = Ledger(str(tmp_path / "studies"), "tiny").records()
    assert [(record.outcome, record.provenance.gpus) for record in records] == [("finished", 0.0)] * 2
    assert 2 <= found["nodes_ever"] <= 3 and found["nodes"] == 1, found
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
