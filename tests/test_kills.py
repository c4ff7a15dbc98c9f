"""Sweeps whose processes are killed again and again: nothing lost, nothing trained twice, and the same table at last.

Each kind of process is killed $CELLRAY_KILLS times, 3 if that isn't set; CI asks for ten. Moments are drawn from a
seed, $CELLRAY_KILL_SEED, and counted in training steps where they can be, so that they fall into the same parts of a
sweep on any machine. The study has twice as many trials as there are kills of a kind, at most twelve.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import shared_by_workers, skip_or_fail
from disturb import Command, born, kill, read_events, title
from filelock import FileLock
from services import free_port, mlflow_server
from tiny_study import draw_images, lasting, lasting_history, same, tiny_study
from undisturbed import assert_nothing_trained_twice, assert_shown_once

from cellray.ledger import Ledger

pytestmark = pytest.mark.slow

SEED = os.environ.get("CELLRAY_KILL_SEED", "0")
N_KILLS = int(os.environ.get("CELLRAY_KILLS", "3"))
LABELS, SEEDS = ("Dice", "BCE"), tuple(range(min(N_KILLS, 6)))
TRIALS = [f"{label}/{seed}" for seed in SEEDS for label in LABELS]
N_STEPS = 120
MEASURED = ["training_s", "evaluation_s", "peak_memory_mb"]
"""Columns of ``trials.csv`` that measure the machine."""
COST = re.compile(rb", about \S+ \w+ one after the other")
"""What the verdict says that more seeds would take."""
PAGES = ("report/figures/", "report/index.html", "report/trials.parquet")
"""Files of a report that show these, too."""


@dataclass(frozen=True)
class Place:
    """A folder with a study's file, and a cache of decoded images."""

    folder: Path
    cache: Path

    def command(self, folder: Path, *words: str) -> Command:
        """A command on the study, with a ledger in `folder`."""
        words = (*words, str(self.folder / "tiny.yaml"), "--storage", str(folder / "studies"))
        return Command(*words, folder=folder, environment={"CELLRAY_CACHE": str(self.cache)})

    def sweep(self, folder: Path, *more: str) -> Command:
        return self.command(folder, "sweep", *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A study of some trials, the same for all workers of xdist."""
    folder = shared_by_workers(tmp_path_factory) / "kills"
    with FileLock(f"{folder}.lock"):
        if not (folder / "tiny.yaml").exists():
            training = {"steps": N_STEPS, "validate_every": 4}  # a checkpoint every 8 steps
            images = draw_images(folder / "disks")
            study = tiny_study(images, training=training, seeds=SEEDS, resources={"max_concurrent": 2})
            (folder / "tiny.yaml").write_text(study.dump_yaml())
    return Place(folder, folder / "cache")


@dataclass(frozen=True)
class Calm:
    """The undisturbed sweep."""

    study: Path
    """Its folder in the storage."""
    start_s: float
    """From the command to the first trial."""
    report_s: float
    """From the last record to the last file of the report."""


@pytest.fixture(scope="module")
def calm(place: Place) -> Calm:
    """The same for all workers of xdist: who comes first makes it."""
    folder = place.folder / "calm"
    with FileLock(f"{folder}.lock"):
        if not (folder / "times.json").exists():
            (folder / "times.json").write_text(json.dumps(undisturbed(place, folder)))
    return Calm(folder / "studies" / "tiny", **json.loads((folder / "times.json").read_text()))


def undisturbed(place: Place, folder: Path) -> dict[str, float]:
    """Run a sweep in a folder without disturbing it; the times of `Calm`."""
    sweep = place.sweep(folder)
    try:
        assert sweep.end() == 0, sweep.output()
        writes = sweep.events("write")
        last_record = [event.seconds for event in writes if event.what.endswith("/trial.json")][-1]
        last_page = [event.seconds for event in writes if event.what.startswith("report/")][-1]
        start_s = sweep.events("begin")[0].seconds - sweep.started
        return {"start_s": start_s, "report_s": last_page - last_record}
    finally:
        sweep.clean_up()


def test_a_sweep_outlives_its_workers_its_reporting_actor_and_its_mlflow_server(place, calm, tmp_path):
    print(f"CELLRAY_KILL_SEED={SEED}")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with ExitStack() as server, ThreadPoolExecutor(3) as pool:
        server.enter_context(mlflow_server(tmp_path / "mlflow", port))
        sweep = place.sweep(tmp_path, "--tracking-uri", uri)
        try:
            workers = pool.submit(kill_workers, sweep, random.Random(f"{SEED} worker"))
            actors = pool.submit(kill_actors, sweep, random.Random(f"{SEED} actor"))
            servers = pool.submit(
                kill_servers, sweep, random.Random(f"{SEED} server"), server, tmp_path / "mlflow", port
            )
            code, output = sweep.end(), sweep.output()
            assert [found.result() for found in (workers, actors, servers)] == [N_KILLS] * 3, output
            assert code == 0, output
            assert_nobody_is_left(sweep)
        finally:
            sweep.clean_up()
        if "cellray track sync" in output:  # the server was away when the sweep ended
            assert place.command(tmp_path, "track", "sync", "--tracking-uri", uri).end() == 0
        assert_shown_once(uri, Ledger(str(tmp_path / "studies"), "tiny"))
    assert_like_undisturbed(tmp_path / "studies" / "tiny", calm.study)
    assert_nothing_trained_twice(Ledger(str(tmp_path / "studies"), "tiny"), read_events(tmp_path))


def kill_workers(sweep: Command, rng: random.Random) -> int:
    """Kill the processes of so many trials: one that begins, a third when the last step is done, the rest in training.

    Returns:
        How many were killed.
    """
    moments = {}
    n_early = N_KILLS - N_KILLS // 3
    for i, trial in enumerate(rng.sample(TRIALS, N_KILLS)):
        step = rng.randrange(N_STEPS) if i < n_early else N_STEPS - 1
        moments[trial if i == 0 else f"{trial}/{step}"] = 0.0 if i < n_early else rng.uniform(0, 0.4)
    n_killed = 0
    while moments and sweep.wait_for(lambda: any(event.what in moments for event in sweep.events())):
        event = next(event for event in sweep.events() if event.what in moments)
        time.sleep(moments.pop(event.what))
        n_killed += bool(born(event.pid))
        kill(event.pid)
    return n_killed


def kill_actors(sweep: Command, rng: random.Random) -> int:
    """Kill the reporting actor and its successors: in the course of the trials, and while the last two report."""
    killed: list[int] = []

    def successor() -> list[int]:
        return [pid for pid in sweep.named("ReportActor") if pid not in killed]

    for moment in [*course(rng, N_KILLS - 2), 1.0, 1.0]:
        if not wait_until(sweep, moment) or not sweep.wait_for(successor):
            break
        time.sleep(rng.uniform(0, 1))
        killed += successor()[:1]
        kill(killed[-1])
    return len(killed)


def kill_servers(sweep: Command, rng: random.Random, server: ExitStack, folder: Path, port: int) -> int:
    """Kill the MLflow server, and start it again after a while; at last while the report is written."""
    n_killed = 0
    for moment in [*course(rng, N_KILLS - 1), 1.0]:
        if not wait_until(sweep, moment):
            break
        time.sleep(rng.uniform(0, 1))
        server.close()
        n_killed += 1
        time.sleep(rng.uniform(0, 1))
        server.enter_context(mlflow_server(folder, port))
    return n_killed


def course(rng: random.Random, n: int) -> list[float]:
    """Moments of a sweep as parts of all its training steps, early enough that the rest is still to come."""
    return sorted(rng.uniform(0, 0.8) for _ in range(n))


def wait_until(sweep: Command, moment: float) -> bool:
    """Wait for a part of the training steps; for all of them and the records, if it is 1. False if the sweep ends."""

    def reached() -> bool:
        if moment == 1:
            return n_records(sweep) == len(TRIALS)
        return len({event.what for event in sweep.events("step")}) >= moment * len(TRIALS) * N_STEPS

    return sweep.wait_for(reached)


def n_records(sweep: Command) -> int:
    """How many records the ledger got since the command was given."""
    return sum(event.what.endswith("/trial.json") for event in sweep.events("write"))


def test_a_killed_sweep_is_ended_by_its_command_given_again(place, calm, tmp_path):
    print(f"CELLRAY_KILL_SEED={SEED}")
    victims = ("driver", "raylet")
    with ThreadPoolExecutor(len(victims)) as pool:  # two ledgers side by side, one trial at a time in each
        list(pool.map(lambda victim: kill_and_repeat(place, calm, tmp_path / victim, victim), victims))
    for victim in victims:
        assert_like_undisturbed(tmp_path / victim / "studies" / "tiny", calm.study)
        ledger = Ledger(str(tmp_path / victim / "studies"), "tiny")
        assert_nothing_trained_twice(ledger, read_events(tmp_path / victim))
        assert_shown_once(f"sqlite:///{tmp_path / victim / 'studies' / 'mlflow.db'}", ledger)


def kill_and_repeat(place: Place, calm: Calm, folder: Path, victim: str) -> None:
    """Begin a sweep so many times, each time to be ended by a kill of its driver or raylet; then let it end."""
    rng = random.Random(f"{SEED} {victim}")
    parts = ["start"] * 4 + ["training"] * 3 + ["evaluation"] * 2
    rng.shuffle(parts)
    sweeps = []
    try:
        for part in [*parts[: N_KILLS - 1], "report"]:
            sweep = place.sweep(folder, "--max-concurrent", "1")
            sweeps.append(sweep)
            strike(sweep, victim, part, rng, Ledger(str(folder / "studies"), "tiny"), calm)
            code = sweep.end(200)
            assert code == -9 if victim == "driver" else code not in (0, -9), sweep.output()
        last = place.sweep(folder, "--max-concurrent", "1")
        sweeps.append(last)
        assert last.end() == 0, last.output()
        for sweep in sweeps:
            assert_nobody_is_left(sweep)
        left = [path.name.split("-")[1] for path in (folder / "tmp").glob("cellray-*")]
        assert len(left) == len(set(left)), left  # what was killed left folders; the next removed them
    finally:
        for sweep in sweeps:
            sweep.clean_up()


def strike(sweep: Command, victim: str, part: str, rng: random.Random, ledger: Ledger, calm: Calm) -> None:
    """Kill a sweep's driver or raylet at a random moment of a part of the sweep."""

    def found() -> list[int]:
        return [sweep.pid] if victim == "driver" else sweep.named("/raylet/raylet ")

    n = rng.randrange(1, 100)
    conditions: dict[str, tuple[Callable[[], object], float]] = {
        "start": (found, calm.start_s if victim == "driver" else calm.start_s / 2),
        "training": (lambda: len(sweep.events("step")) >= n, 0.0),
        "evaluation": (lambda: any(e.what.endswith(f"/{N_STEPS - 1}") for e in sweep.events("step")), 0.5),
        "report": (lambda: len(ledger.records()) == len(TRIALS), 0.25 * calm.report_s),  # one alone is faster
    }
    condition, delay_s = conditions[part]
    assert sweep.wait_for(condition), f"it ended before its {part}\n{sweep.output()}"
    time.sleep(rng.uniform(0, delay_s))
    sweep.family()  # while its parents live
    for pid in found():
        kill(pid)


def test_memory_that_is_refused_or_costs_a_worker_its_life_fails_the_trial_and_no_other(place, tmp_path):
    contenders = [
        {"label": "Dice", "loss": {"name": "dice"}},
        {"label": "huge network", "loss": {"name": "dice"}, "model": {"base_features": 2**21}},  # 158 TB
        {"label": "killed", "loss": {"name": "bce"}},
    ]
    study = tiny_study(place.folder / "disks", configurations=contenders)
    (tmp_path / "tiny.yaml").write_text(study.dump_yaml())
    here = Place(tmp_path, place.cache)
    sweep = here.sweep(tmp_path)
    try:
        for n in range(3):  # as the kernel does to a process above its memory limit
            assert sweep.wait_for(lambda n=n: len(beginnings(sweep, "killed/0")) > n), sweep.output()
            kill(beginnings(sweep, "killed/0")[n])
        assert sweep.end() == 3, sweep.output()
    finally:
        sweep.clean_up()
    assert len(beginnings(sweep, "killed/0")) == 3
    found = records_of(tmp_path)
    assert {label: record.outcome for label, record in found.items()} == {
        "Dice": "finished",
        "huge network": "failed",
        "killed": "failed",
    }
    assert "can't allocate memory" in found["huge network"].reason
    assert found["killed"].reason.startswith("given up after 3 attempts: ")
    assert all(label in sweep.output() for label in found)


def beginnings(sweep: Command, trial: str) -> list[int]:
    """The processes that began to train a trial."""
    return [event.pid for event in sweep.events("begin") if event.what == trial]


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a ledger, by label."""
    return {record.label: record for record in Ledger(str(folder / "studies"), "tiny").records()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, mounted as the folder `studies`."""
    disk = tmp_path / "studies"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "cellray", str(disk)], capture_output=True)
    if mounted.returncode:
        skip_or_fail("A full disk is tested with a small tmpfs: run as root, with the right to mount.")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_the_sweep_with_no_trial_failed_and_with_more_room_it_goes_on(place, small_disk, tmp_path):
    contenders = [
        {"label": "wide", "loss": {"name": "dice"}, "model": {"base_features": 16}},  # 7 MB, and 20 with Adam's state
        {"label": "Dice", "loss": {"name": "dice"}},
    ]
    study = tiny_study(place.folder / "disks", configurations=contenders)
    (tmp_path / "tiny.yaml").write_text(study.dump_yaml())
    here, tracking = Place(tmp_path, place.cache), ("--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    sweep = here.sweep(tmp_path, *tracking, "--max-concurrent", "1")
    try:
        assert sweep.end() == 4, sweep.output()
    finally:
        sweep.clean_up()
    assert not records_of(tmp_path)  # "wide" is the first, and no other was started
    told = " ".join(sweep.output().split())
    assert "No space left on device" in told and "go on: cellray sweep" in told and "Traceback" not in told
    assert not list(small_disk.rglob("*.part"))

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = here.sweep(tmp_path, *tracking)
    try:
        assert again.end() == 0, again.output()
    finally:
        again.clean_up()
    assert {record.outcome for record in records_of(tmp_path).values()} == {"finished"}


def test_the_second_interrupt_does_not_wait_and_a_second_sweep_is_told_who_holds_the_ledger(place, tmp_path):
    sweep = place.sweep(tmp_path, "--max-concurrent", "1")
    second = None
    try:
        assert sweep.wait_for(lambda: sweep.events("step")), sweep.output()
        worker = sweep.events("step")[0].pid
        os.kill(worker, signal.SIGSTOP)  # its epoch doesn't end
        os.killpg(sweep.pid, signal.SIGINT)
        second = place.sweep(tmp_path)
        assert second.end() == 2
        assert f"process {sweep.pid} on {socket.gethostname()}" in " ".join(second.output().split())
        assert sweep.runs()  # it waits for the epoch
        sweep.family()
        os.killpg(sweep.pid, signal.SIGINT)
        asked = time.monotonic()
        assert sweep.end(60) == 130
        assert time.monotonic() - asked < 30
        assert "To go on: cellray sweep" in " ".join(sweep.output().split())
        assert_nobody_is_left(sweep)
    finally:
        sweep.clean_up()
        if second is not None:
            second.clean_up()
    assert not Ledger(str(tmp_path / "studies"), "tiny").exists("lease.json")


AGENTS = ("DashboardAgent", "RuntimeEnvAgent", "/dashboard/agent.py", "/runtime_env/agent/")
"""Ray's, which try for 60 s, a fixed number of Ray's own, to tell a killed driver's Ray that it is gone."""


def assert_nobody_is_left(sweep: Command) -> None:
    """Nobody of its processes outlives a sweep by 30 s, and Ray's agents not by much more than their minute."""
    began = time.monotonic()
    while family := sweep.family():
        late_s = time.monotonic() - began
        others = [pid for pid in family if not any(name in title(pid) for name in AGENTS)]
        assert late_s < (30 if others else 75), [title(pid) for pid in family]
        time.sleep(0.1)


def assert_like_undisturbed(study: Path, calm: Path) -> None:
    """A study's folder holds the very files of the undisturbed one, up to what measures the machine."""
    paths, expected = ({str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in (study, calm))
    assert paths == expected
    for path in sorted(paths):
        a, b = ((folder / path).read_bytes() for folder in (study, calm))
        if path.endswith("/trial.json"):
            key = Path(path).parent.name
            records = [Ledger(str(folder.parent), folder.name).record(key) for folder in (study, calm)]
            assert same(*map(lasting, records)), path
        elif path.endswith("/history.parquet"):
            pd.testing.assert_frame_equal(*(lasting_history(pd.read_parquet(io.BytesIO(data))) for data in (a, b)))
        elif path == "report/trials.csv":
            pd.testing.assert_frame_equal(*(pd.read_csv(io.BytesIO(d)).drop(columns=MEASURED) for d in (a, b)))
        elif not path.endswith(("/last.pt", "/status.json")) and not path.startswith(PAGES):
            assert COST.sub(b"", a) == COST.sub(b"", b), path
