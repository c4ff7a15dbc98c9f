"""A sweep whose processes are killed at random: nothing lost, nothing twice, and the same table at last.

$CELLRAY_KILLS kills in all, 3 if that isn't set; CI asks for 20. Who is killed, and when, is drawn from a seed,
$CELLRAY_KILL_SEED. Moments are counted in what a sweep does, and so fall into the same parts of it on any machine.
"""

from __future__ import annotations

import io
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from commands import run_here
from disturb import Command, Event, kill, read_events, title
from services import free_port, mlflow_server
from tiny_study import draw_images, lasting, lasting_history, same, tiny_study
from undisturbed import assert_nothing_trained_twice, assert_shown_once

from cellray.ledger import Ledger

pytestmark = pytest.mark.slow

SEED = os.environ.get("CELLRAY_KILL_SEED", "0")
N_KILLS = int(os.environ.get("CELLRAY_KILLS", "3"))
AT_ONCE = 5
"""Kills of one study; then the next one begins."""
N_STEPS = 60
TRIALS = [(label, seed) for seed in (0, 1) for label in ("Dice", "BCE")]
PROCESSES = {"worker": "ImplicitFunc", "raylet": "/raylet/raylet ", "gcs": "gcs_server", "reporter": "ReportActor"}
"""Whom else there is to kill than the driver and the MLflow server, by parts of their names."""
MEASURED = ["training_s", "evaluation_s", "peak_memory_mb"]
"""Columns of ``trials.csv`` that measure the machine."""
COST = re.compile(rb", about \S+ \w+ one after the other")
"""What the verdict says that more seeds would take."""
PAGES = ("report/figures/", "report/index.html", "report/built.txt")
"""Files of a report that show these, too."""


@dataclass
class Place:
    """A folder with a study's file, a cache of decoded images, and the study's undisturbed ledger."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"CELLRAY_CACHE": str(self.folder / "cache")}

    def sweep(self, folder: Path, *more: str) -> Command:
        """Begin a sweep, with a ledger in `folder`."""
        words = ("sweep", str(self.folder / "tiny.yaml"), "--storage", str(folder / "studies"), *more)
        return Command(*words, folder=folder, environment=self.environment)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The undisturbed trials are run one by one, without Ray."""
    place = Place(tmp_path_factory.mktemp("kills"))
    training = {"steps": N_STEPS, "validate_every": 4}  # a checkpoint every 8 steps
    study = tiny_study(draw_images(place.folder / "disks"), training=training, seeds=[0, 1])
    (place.folder / "tiny.yaml").write_text(study.dump_yaml())
    for label, seed in TRIALS:
        words = ("train", "tiny.yaml", "--config", label, "--seed", str(seed))
        done = run_here(*words, cwd=place.folder, env=place.environment)
        assert done.returncode == 0, done.stderr
    assert run_here("report", "tiny", cwd=place.folder, env=place.environment).returncode == 0
    return place


@dataclass
class Study:
    """A study's sweeps, one after the other, with an MLflow server of its own."""

    place: Place
    folder: Path
    rng: random.Random
    sweeps: list[Command] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)
    """Who was killed, and when, in words."""

    def __post_init__(self) -> None:
        self._server, self._port = ExitStack(), free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.ledger = Ledger(str(self.folder / "studies"), "tiny")
        self.serve()

    def serve(self) -> None:
        self._server.enter_context(mlflow_server(self.folder / "mlflow", self._port))

    def begin(self) -> Command:
        """The same command, again and again."""
        self.sweeps.append(self.place.sweep(self.folder, "--tracking-uri", self.uri))
        return self.sweeps[-1]

    def end(self) -> None:
        for sweep in self.sweeps:
            sweep.clean_up()
        self._server.close()

    def strike(self, sweep: Command) -> bool:
        """Kill one of those that live at some moment of a sweep; whether it lasted so long."""
        n_steps, n_records = self.rng.randrange(1, N_STEPS * len(TRIALS)), self.rng.randrange(1, len(TRIALS))
        name, late_s = self.rng.choice([*PROCESSES.values()]), self.rng.choice([0.0, self.rng.uniform(0, 1)])
        moments: dict[str, Callable[[], object]] = {
            f"when there is {name.strip()}": lambda: sweep.named(name),
            f"after {n_steps} steps": lambda: len({e.what for e in self.events("step")}) >= n_steps,
            f"between trials, after {n_records}": lambda: self.n_records >= n_records,
            "in its report": lambda: self.n_records == len(TRIALS),
        }
        moment = self.rng.choice([*moments])
        if not sweep.wait_for(moments[moment]):
            return False
        time.sleep(late_s)
        family = sweep.family()  # while its parents live
        found = {who: [pid for pid in family if part in title(pid)] for who, part in PROCESSES.items()}
        if sum(words.startswith(f"{len(self.sweeps)}. worker") for words in self.kills) == 2:
            del found["worker"]  # at the third death, its trial would have failed
        who = self.rng.choice(["driver", "mlflow", *(who for who, pids in found.items() if pids)])
        if not sweep.runs():
            return False
        self.kills.append(f"{len(self.sweeps)}. {who} {moment}, {late_s:.1f} s later")
        print(self.kills[-1])
        if who == "mlflow":
            self._server.close()
            time.sleep(late_s)
            self.serve()
            return True
        kill(sweep.pid if who == "driver" else self.rng.choice(found[who]))
        if who in ("driver", "raylet", "gcs"):
            code = sweep.end(200)
            assert code == -9 if who == "driver" else code != -9, sweep.output()
        return True

    def events(self, word: str) -> list[Event]:
        return [event for event in read_events(self.folder) if event.word == word]

    @property
    def n_records(self) -> int:
        return len({event.what for event in self.events("write") if event.what.endswith("/trial.json")})


@pytest.mark.parametrize("first", range(0, N_KILLS, AT_ONCE))
def test_a_sweep_killed_at_random_is_ended_by_its_command_given_again(place, tmp_path, first):
    print(f"CELLRAY_KILL_SEED={SEED}")
    study = Study(place, tmp_path, random.Random(f"{SEED} {first}"))
    try:
        sweep = study.begin()
        while len(study.kills) < min(AT_ONCE, N_KILLS - first):
            if not sweep.runs():
                sweep = study.begin()
            study.strike(sweep)
        if sweep.end() != 0 or "cellray track sync" in sweep.output():  # MLflow was away at its end
            sweep = study.begin()
            assert sweep.end() == 0, sweep.output()
        for one in study.sweeps:
            assert "Traceback" not in one.output(), one.output()
            assert_nobody_is_left(one)
        left = [path.name.split("-")[1] for path in (tmp_path / "tmp").glob("cellray-*")]
        assert len(left) == len(set(left)), left  # what was killed left folders; the next removed them
        assert_shown_once(study.uri, study.ledger)
    finally:
        study.end()
    assert_like_undisturbed(tmp_path / "studies" / "tiny", place.folder / "studies" / "tiny")
    assert_nothing_trained_twice(study.ledger, read_events(tmp_path))


def test_signals_end_a_sweep_and_a_second_one_is_told_who_holds_the_ledger(place, tmp_path):
    sweeps = [place.sweep(tmp_path)]
    try:
        (sweep,) = sweeps
        assert sweep.wait_for(lambda: sweep.named("gcs_server")), sweep.output()  # Ray starts
        assert_ended_by(signal.SIGTERM, sweep)

        sweeps.append(sweep := place.sweep(tmp_path, "--max-concurrent", "1"))
        assert sweep.wait_for(lambda: sweep.events("step")), sweep.output()
        worker = sweep.events("step")[0].pid
        os.kill(worker, signal.SIGSTOP)  # its epoch doesn't end
        os.killpg(sweep.pid, signal.SIGHUP)  # as a terminal does that is closed
        sweeps.append(second := place.sweep(tmp_path))
        assert second.end() == 2
        assert f"process {sweep.pid} on {socket.gethostname()}" in " ".join(second.output().split())
        assert sweep.runs()  # it waits for the epoch
        assert_ended_by(signal.SIGINT, sweep)
    finally:
        for sweep in sweeps:
            sweep.clean_up()
    assert not Ledger(str(tmp_path / "studies"), "tiny").exists("lease.json")


def assert_ended_by(number: int, sweep: Command) -> None:
    """A signal, as a terminal sends it, ends a sweep soon, with the words that go on, and with all its processes."""
    sweep.family()
    os.killpg(sweep.pid, number)
    asked = time.monotonic()
    assert sweep.end(60) == 130, sweep.output()
    assert time.monotonic() - asked < 30
    assert "Interrupted; nothing is lost. To go on: cellray sweep" in " ".join(sweep.output().split())
    assert_nobody_is_left(sweep)


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
    ours, expected = ({str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in (study, calm))
    paths = ours - {"report/status.json", "report/live.html"}  # of a sweep only
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
        elif not path.endswith("/last.pt") and not path.startswith(PAGES):
            assert COST.sub(b"", a) == COST.sub(b"", b), path
