"""Temporary folders of processes that live, and of those that don't."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cellray.scratch import scratch_folder


def test_they_can_be_made_elsewhere(tmp_path):
    with scratch_folder("ray", str(tmp_path)) as folder:
        assert Path(folder).parent == tmp_path


def test_the_temporary_folders_of_a_killed_process_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    others = [f"cellray-models-{os.getpid()}-live", f"cellray-mlflow-{ended.pid}-x", "cellray-models-old"]
    for name in (f"cellray-models-{ended.pid}-dead", *others):
        (tmp_path / name / "model").mkdir(parents=True)
    with scratch_folder("models") as folder:
        assert {path.name for path in tmp_path.iterdir()} == {*others, Path(folder).name}
    assert {path.name for path in tmp_path.iterdir()} == set(others)
