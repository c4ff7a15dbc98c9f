"""Hostile places to work in: no name, no home, nothing that can be written but the storage, few files, little memory.

As root, in a mount namespace of its own: a user that owns nothing but one folder, and may read all others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import run_here
from conftest import skip_or_fail
from tiny_study import draw_images, tiny_study

from cellray.ledger import Ledger

NOBODY = 42_424
PLACE = f"""
mount -t tmpfs -o size=16m none /dev/shm
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
cd "$1" && shift
ulimit -n 256
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups \\
    --inh-caps=+dac_read_search --ambient-caps=+dac_read_search "$@"
"""
SEVERAL = """
import json, sys
from pathlib import Path
from commands import run_here
done = (run_here(*words, cwd=Path(), env={}) for words in json.loads(sys.argv[1]))
print(json.dumps([(one.returncode, one.stdout, one.stderr) for one in done]))
"""
pytestmark = pytest.mark.slow


class Place(NamedTuple):
    here: Path
    """With a study and its images; read-only."""
    own: Path
    """The user's."""

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME", "COLUMNS")}
        env |= {"CELLRAY_CACHE": str(self.own / "cache"), "TMPDIR": str(self.own), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            ["unshare", "--mount", "bash", "-ec", PLACE, "bash", str(self.here), *words],
            env=env | {"LC_ALL": "C", "COLUMNS": "20", "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        skip_or_fail("A user that owns nothing is tried in a mount namespace: run this as root, with unshare.")
    with tempfile.TemporaryDirectory(prefix="cr-") as folder:  # its name is short enough for the sockets of Ray
        place = Place(Path(folder, "here"), Path(folder, "own"))
        Path(folder).chmod(0o755)
        place.own.mkdir()
        os.chown(place.own, NOBODY, NOBODY)
        draw_images(place.here / "disks")
        (place.here / "tiny.yaml").write_text(
            tiny_study(place.here / "disks", resources={"max_concurrent": 1}).dump_yaml()
        )
        yield place


def test_a_sweep_of_nobody_in_a_poor_place_whose_reader_has_gone(place):
    sweep = [sys.executable, "-m", "cellray", "sweep", "tiny.yaml", "--storage", str(place.own / "studies")]
    done = place("bash", "-o", "pipefail", "-c", '"$@" | head -1', "bash", *sweep)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines() == ["tiny: 2 trials "]
    ledger = Ledger(str(place.own / "studies"), "tiny")
    assert [record.outcome for record in ledger.records()] == ["finished"] * 2 and ledger.exists("report/index.html")


STORAGE = "storage '{here}/studies' is not writable: Read-only file system (--storage names another)"
STORE = "mlflow.db is unreachable (it can't be written); start it, or give another --tracking-uri"
READ_ONLY = {
    "status tiny": (0, "2 trials planned, 2 finished"),
    "compare Dice BCE --study tiny": (0, "Differences are paired"),
    "plan tiny.yaml": (0, "2 done, 0 to do"),
    "report tiny": (2, "Error: {here}/studies/tiny/report/index.html can't be written: Read-only file system"),
    "sweep tiny.yaml": (2, STORAGE),
    "train tiny.yaml --config Dice --seed 0": (2, STORAGE),
    "track sync tiny": (2, STORE),
    "register tiny": (2, STORE),
    "ui": (2, STORE),
    "predict tiny disks/test/images --out {own}/found": (0, "written: {own}/found"),
    "predict tiny disks/test/images --out found": (2, "Error: found: Read-only file system"),
    "evaluate tiny disks": (0, "on 11 images"),
    "init disks": (2, "Error: disks.yaml: Read-only file system"),
    "data preview disks": (2, "Error: preview.png: Read-only file system"),
}


def test_a_storage_that_can_not_be_written_is_read_and_else_named(place):
    env = {"CELLRAY_CACHE": str(place.own / "cache")}
    for label in ("Dice", "BCE"):
        done = run_here("train", "tiny.yaml", "--config", label, "--seed", "0", cwd=place.here, env=env)
        assert done.returncode == 0, done.stderr
    for path in [place.own, *place.own.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    commands = [command.format(**place._asdict()).split() for command in READ_ONLY]
    whole = place(sys.executable, "-c", SEVERAL, json.dumps(commands))
    assert whole.returncode == 0, whole.stderr
    for command, (code, words), (was, *said) in zip(
        READ_ONLY, READ_ONLY.values(), json.loads(whole.stdout), strict=True
    ):
        text = " ".join("".join(said).split())
        assert (was, words.format(**place._asdict()) in text) == (code, True), (command, text)
        assert "Traceback" not in text and (was == 0 or said[1].count("\n") == 1), text
    shutil.rmtree(place.here / "studies")
