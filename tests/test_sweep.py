"""A tiny study on a real local Ray: nothing twice, nothing lost, whatever is killed."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from conftest import skip_or_fail
from disturb import descendants, title
from services import LOOPBACK, listening
from tiny_study import draw_images, lasting, same, tiny_study

from cellray.errors import LedgerError, StorageError, StudyError
from cellray.ledger import Ledger
from cellray.observers import Observer
from cellray.processes import Flag
from cellray.search import Task
from cellray.sweep import cluster as ray_cluster
from cellray.sweep import connect, run_sweep
from cellray.sweep.tuner import News, Stoppable
from cellray.sweep.tuning import WORKER_DEATHS, quiet_tune
from cellray.trial import Sets, run_trial

pytestmark = pytest.mark.slow

LONG = {"steps": 80, "validate_every": 4}
"""Of training: 40 epochs, long enough to be disturbed."""


class Memory(Observer):
    """An observer that remembers, and may do something at each epoch."""

    def __init__(self, at_epoch=lambda trial, row: None):
        self.news, self.epochs, self.ended, self.at_epoch = [], [], [], at_epoch

    def on_start(self, study, plan):
        self.news.append(("start", len(plan), sum(p.done for p in plan)))

    def on_trial_start(self, trial):
        self.news.append(("trial start", trial.label, trial.seed))

    def on_epoch(self, trial, row):
        self.epochs.append((trial.label, trial.seed, row["epoch"]))
        self.at_epoch(trial, row)

    def on_end(self, record):
        self.news.append(("end", record.label, record.seed))
        self.ended.append(record)

    def on_finish(self):
        self.news.append(("finish",))


class Broken(Observer):
    """An observer that has nothing but errors."""

    def on_start(self, study, plan):
        raise RuntimeError("broken")

    on_epoch = on_start

    def on_end(self, record):
        raise RuntimeError("broken")


def wait_until(condition, timeout_s=90.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def ray_here(cache):
    """One cluster for all tests of this file that don't need their own."""
    with connect():
        yield


def test_nobody_outside_of_this_machine_reaches_a_local_sweep(ray_here):
    import ray

    ray.get(ray.remote(lambda: None).remote())  # a worker lives
    addresses = {pid: listening(pid) for pid in [os.getpid(), *descendants(os.getpid())]}
    assert sum(map(len, addresses.values())) > 5
    assert {title(pid): found for pid, found in addresses.items() if not LOOPBACK.issuperset(found)} == {}


ASK = "import sys; from ray._raylet import GcsClient; print(len(GcsClient(sys.argv[1]).get_all_node_info()), 'nodes')"


@pytest.mark.parametrize(("token", "answer"), [({}, "1 nodes"), ({"RAY_AUTH_TOKEN": "another"}, "")])
def test_ray_answers_only_who_has_the_token_of_the_sweep(ray_here, tmp_path, token, answer):
    import ray

    client = [sys.executable, "-c", ASK, ray.get_runtime_context().gcs_address]
    env = {**os.environ, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path), **token}
    done = subprocess.run(client, capture_output=True, text=True, env=env, check=False, timeout=100)
    assert done.stdout.strip() == answer, done.stderr


def test_ray_knows_the_ports_of_its_agents_and_so_does_not_wait_for_them(ray_here):
    raylet = next(title(pid) for pid in descendants(os.getpid()) if "/raylet/raylet " in title(pid))
    for name in ("metrics-agent-port", "runtime-env-agent-port"):
        assert re.search(rf"--{name}=[1-9]", raylet), raylet


def test_processes_of_ray_look_for_garbage_seldom(ray_here):
    import ray

    assert ray.get(ray.remote(lambda: gc.get_threshold()).remote())[0] == 50_000


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """Records of the long trials, run one by one without Ray, by key."""
    study = tiny_study(images, training=LONG)
    sets, ledger = Sets.open(study.data), Ledger(str(tmp_path_factory.mktemp("alone")), study.name)
    return {record.key: record for record in (run_trial(trial, sets, ledger) for trial in study.trials())}


def sweep(study, storage, **how):
    return run_sweep(study, Sets.open(study.data), Ledger(str(storage), study.name), **how)


def assert_like_alone(records, alone):
    assert {record.key for record in records} == set(alone)
    assert all(same(lasting(record), lasting(alone[record.key])) for record in records)


def test_each_trial_runs_once_as_without_ray_and_additions_only_add(ray_here, images, tmp_path):
    study, memory = tiny_study(images), Memory()
    first = sweep(study, tmp_path / "swept", observers=[Broken(), memory])
    assert [(r.label, r.outcome) for r in first] == [("Dice", "finished"), ("BCE", "finished")]
    assert memory.news[0] == ("start", 2, 0) and memory.news[-1] == ("finish",) and len(memory.news) == 6
    assert sorted(memory.epochs) == [(label, 0, epoch) for label in ("BCE", "Dice") for epoch in (1, 2, 3)]
    sets, ledger = Sets.open(study.data), Ledger(str(tmp_path / "alone"), study.name)
    alone = {r.key: r for r in (run_trial(trial, sets, ledger) for trial in study.trials())}
    assert_like_alone(first, alone)

    memory = Memory()
    assert sweep(study, tmp_path / "swept", observers=[memory]) == first
    assert memory.news == [("start", 2, 2), ("finish",)] and memory.epochs == []

    memory = Memory()
    contenders = [*study.model_dump(mode="json")["configurations"], {"label": "Focal", "loss": {"name": "focal"}}]
    wider = tiny_study(images, configurations=contenders, seeds=[0, 5])
    chosen = [("BCE", 5), ("Focal", 0)]
    some = sweep(wider, tmp_path / "swept", observers=[memory], chosen=chosen, max_concurrent=1)
    assert sorted((r.label, r.seed) for r in memory.ended) == chosen and len(some) == 4
    memory = Memory()
    every = sweep(wider, tmp_path / "swept", observers=[memory], max_concurrent=1)
    assert len(every) == 6 and [r for r in every if r in first] == first
    assert sorted((r.label, r.seed) for r in memory.ended) == [("Dice", 5), ("Focal", 5)]
    running = [news[0] for news in memory.news[1:-1]]
    assert running == ["trial start", "end"] * 2  # never two at once


def test_a_dead_worker_is_replaced_and_a_trial_that_costs_too_many_or_too_much_memory_has_failed(
    ray_here, images, tmp_path, alone
):
    killed = {"Dice": set(), "BCE": set()}

    def kill(trial, row):
        most = 1 if trial.label == "Dice" else WORKER_DEATHS + 1
        if row["epoch"] >= 10 and len(killed[trial.label]) < most:
            workers = {p for p in descendants(os.getpid()) if title(p).startswith("ray::ImplicitFunc")}
            killed[trial.label] |= workers
            for worker in workers:  # as the kernel does to a process above its memory limit
                os.kill(worker, signal.SIGKILL)

    contenders = tiny_study(images).model_dump(mode="json")["configurations"]
    huge = {"label": "huge", "loss": {"name": "dice"}, "model": {"base_features": 2**21}}  # 158 TB
    memory = Memory(kill)
    study = tiny_study(images, training=LONG, configurations=[*contenders, huge])
    records = {record.label: record for record in sweep(study, tmp_path, observers=[memory], max_concurrent=1)}
    assert {label: len(workers) for label, workers in killed.items()} == {"Dice": 1, "BCE": WORKER_DEATHS + 1}
    dice = records["Dice"]
    assert same(lasting(dice), lasting(alone[dice.key]))
    of_dice = [epoch for label, _seed, epoch in memory.epochs if label == "Dice"]
    assert of_dice[:10] == list(range(1, 11)) and 1 < of_dice[10] <= 11  # from a checkpoint, not from the start
    assert {records[label].outcome for label in ("BCE", "huge")} == {"failed"}
    assert records["BCE"].reason.startswith("given up after 3 attempts: ")
    assert "can't allocate memory" in records["huge"].reason


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    disk = tmp_path / "studies"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "cellray", str(disk)], capture_output=True)
    if mounted.returncode:
        skip_or_fail("A full disk is tested with a small tmpfs: run as root, with the right to mount.")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_a_sweep_with_no_trial_failed_and_with_more_room_it_goes_on(ray_here, images, small_disk):
    wide = {"label": "wide", "loss": {"name": "dice"}, "model": {"base_features": 16}}  # 7 MB, and 20 with Adam's state
    study = tiny_study(images, configurations=[wide, {"label": "Dice", "loss": {"name": "dice"}}])
    memory = Memory()
    with pytest.raises(StorageError, match="No space left on device"):
        sweep(study, small_disk, observers=[memory], max_concurrent=1)
    assert [news for news in memory.news if news[0] == "trial start"] == [("trial start", "wide", 0)]
    assert not memory.ended and not list(small_disk.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert [record.outcome for record in sweep(study, small_disk, max_concurrent=1)] == ["finished"] * 2


def test_a_trial_that_fails_again_and_again_is_an_outcome(ray_here, tmp_path):
    study = tiny_study(draw_images(tmp_path / "disks"))
    sets, ledger = Sets.open(study.data), Ledger(str(tmp_path / "studies"), study.name)
    (tmp_path / "disks").rename(tmp_path / "moved")
    memory = Memory()
    records = run_sweep(study, sets, ledger, observers=[memory], max_concurrent=1)
    assert [record.outcome for record in records] == ["failed", "failed"] and len(memory.ended) == 2
    assert all("DataError" in record.reason and "disks" in record.reason for record in records)

    (tmp_path / "moved").rename(tmp_path / "disks")
    assert [r.outcome for r in run_sweep(study, sets, ledger)] == ["failed", "failed"]
    again = run_sweep(study, sets, ledger, retry_failed=True, chosen=[("BCE", 0)])
    assert sorted((r.label, r.outcome) for r in again) == [("BCE", "finished"), ("Dice", "failed")]


def test_resources_that_no_node_has_are_refused_at_once(ray_here, images, tmp_path):
    memory, started = Memory(), time.monotonic()
    with pytest.raises(StudyError, match=r"1000 CPUs \(largest node: \d+\)"):
        sweep(tiny_study(images, resources={"cpus": 1000}), tmp_path, observers=[memory])
    with pytest.raises(StudyError, match="3 GPUs"):
        sweep(tiny_study(images, resources={"gpus": 3}), tmp_path)
    assert time.monotonic() - started < 10 and memory.news == []


def test_a_sweep_that_waits_for_resources_says_so(ray_here, images, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr("cellray.sweep.tuner.WAITING_S", 1.0)
    notes = []

    @ray.remote
    class Holder:
        pass

    class Freeing(Observer):
        def on_note(self, sentence):
            notes.append(sentence)
            threading.Timer(3.0, ray.kill, [holder]).start()  # it isn't said again in the meantime

    n_cpus = int(ray.cluster_resources()["CPU"])
    holder = Holder.options(num_cpus=n_cpus).remote()
    ray.get(holder.__ray_ready__.remote())
    records = sweep(tiny_study(images), tmp_path, observers=[Freeing()], max_concurrent=1)
    assert [record.outcome for record in records] == ["finished", "finished"]
    words = f"each trial needs 1 CPU and 0 GPUs; the cluster has 1 node with {n_cpus} CPUs and 0 GPUs"
    assert notes == [f"waiting for resources: {words}"]


def lose_workers(monkeypatch, n, error):
    """Let Tune lose the worker that runs, each time it reports an epoch, `n` times; returns the list of those lost."""
    from ray.air.execution._internal.actor_manager import RayActorManager

    plain, lost = RayActorManager._actor_task_resolved, []

    def resolved(self, tracked_actor_task, result):
        if len(lost) < n and isinstance(result, dict) and "row" in result:
            lost.append(result)
            return self._actor_task_failed(tracked_actor_task=tracked_actor_task, exception=error)
        return plain(self, tracked_actor_task, result)

    monkeypatch.setattr(RayActorManager, "_actor_task_resolved", resolved)
    return lost


def test_a_trial_that_ray_killed_for_memory_fails_by_itself(ray_here, images, tmp_path, monkeypatch):
    """Ray's memory monitor raises an error at which Tune would end the whole sweep."""
    from ray.exceptions import OutOfMemoryError

    error = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.\nMore.\nSee docs.")
    lost = lose_workers(monkeypatch, WORKER_DEATHS + 1, error)
    records = sweep(tiny_study(images, training=LONG), tmp_path, max_concurrent=1)
    assert [record.outcome for record in records] == ["failed", "finished"] and len(lost) == WORKER_DEATHS + 1
    assert "running low on memory" in records[0].reason


def test_preemption_costs_no_attempt(ray_here, images, tmp_path, monkeypatch, alone):
    from ray.exceptions import RayActorError

    n = WORKER_DEATHS + 1  # so many deaths would be the end of the trial
    lost = lose_workers(monkeypatch, n, RayActorError(error_msg="its node was taken back", preempted=True))
    records = sweep(tiny_study(images, training=LONG), tmp_path, max_concurrent=1)
    assert len(lost) == n
    assert_like_alone(records, alone)


def test_two_sweeps_on_one_ledger_are_refused(images, tmp_path):
    study = tiny_study(images)
    ledger = Ledger(str(tmp_path), study.name)
    with ledger.lease(), pytest.raises(LedgerError, match=f"held by another sweep .process {os.getpid()}"):
        sweep(study, tmp_path)


DRIVER = """
import sys
from cellray.ledger import Ledger
from cellray.observers import Observer
from cellray.study import Study
from cellray.sweep import connect, run_sweep
from cellray.trial import Sets

class Say(Observer):
    def on_epoch(self, trial, row):
        print("epoch", trial.label, row["epoch"], flush=True)
    def on_finish(self):
        print("finish", flush=True)

study = Study.model_validate_json(sys.argv[1])
try:
    with connect():
        run_sweep(study, Sets.open(study.data), Ledger(sys.argv[2], study.name), observers=[Say()])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.fixture
def driver(images, tmp_path):
    """A sweep of the long study in a process group of its own, at its third epoch, and all processes that it has."""
    study = tiny_study(images, training=LONG)
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}  # a cluster of others, which must not matter
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, study.model_dump_json(), str(tmp_path / "studies")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    lines = [process.stdout.readline() for _ in range(3)]
    assert all(line.startswith("epoch") for line in lines), "".join(lines) + process.stdout.read()
    process.family = descendants(process.pid)
    assert any("raylet" in title(p) for p in process.family)
    yield process
    for pid in (process.pid, *process.family):
        if title(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_an_interrupt_ends_running_trials_and_the_next_sweep_ends_them(ray_here, driver, images, tmp_path, alone):
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    rest = driver.stdout.read().splitlines()
    assert driver.wait() == 130
    assert rest[-2:] == ["finish", "interrupted"]
    assert all(line.startswith("epoch") for line in rest[:-2])  # not a word of Ray's or Tune's
    assert len(rest) - 2 < 40
    wait_until(lambda: not any(title(p) for p in driver.family), 20)  # nothing is left behind
    ledger = Ledger(str(tmp_path / "studies"), "tiny")
    assert ledger.records() == [] and not ledger.exists("lease.json")
    memory = Memory()
    records = sweep(tiny_study(images, training=LONG), tmp_path / "studies", observers=[memory], max_concurrent=1)
    assert_like_alone(records, alone)


def test_an_interrupt_does_not_wait_for_processes_that_start(ray_here, tmp_path):
    from ray import tune

    class SlowToLoad:
        """Takes a minute where a worker gets it."""

        def __init__(self):
            self.driver, self.begun = os.getpid(), tmp_path / "begun"

        def __setstate__(self, state):
            self.__dict__ = state
            if os.getpid() != self.driver:
                self.begun.touch()
                time.sleep(60)

    interrupted, slow, asked = Flag(), SlowToLoad(), []

    def interrupt():
        wait_until(slow.begun.exists)
        asked.append(time.monotonic())
        interrupted.set()

    threading.Thread(target=interrupt).start()
    with quiet_tune():
        tune.Tuner(
            lambda config: slow.driver,
            tune_config=tune.TuneConfig(scheduler=Stoppable(interrupted)),
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        ).fit()
    assert time.monotonic() - asked[0] < 9  # Tune gives such a process 10 s


class TestLongTmpdir:
    """The names of Ray's sockets have 107 characters at most, and begin with the folder for temporary files."""

    def test_a_short_folder_stays(self, monkeypatch):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        for folder in ("/tmp", "/scratch/" + "x" * 26):
            monkeypatch.setenv("TMPDIR", folder)
            assert ray_cluster._short_folder() is None

    def test_a_long_one_is_replaced_by_a_short_one(self, monkeypatch, tmp_path):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "slurm_jobdir" / "1355700" / "tmp.t0016"))
        folder = ray_cluster._short_folder()
        assert folder is not None
        with folder as name:
            assert len(name) <= ray_cluster.LONGEST_TMPDIR
            session = f"{name}/session_2026-11-29_11-28-25_123456_4194304/sockets/plasma_store"
            assert len(session) <= 107

    def test_where_none_can_be_written_it_is_named_with_what_to_set(self, monkeypatch, tmp_path):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 40)))
        monkeypatch.setattr(ray_cluster, "SHORT_PLACES", (str(tmp_path / "absent"),))
        with pytest.raises(StudyError, match=r"TMPDIR is .*, too long for the sockets.*set TMPDIR to a folder of"):
            ray_cluster._short_folder()


def test_a_note_that_several_trials_send_is_told_once():
    class Listener(Observer):
        def __init__(self):
            self.heard = []

        def on_note(self, sentence):
            self.heard.append(sentence)

    listener = Listener()
    news = News(
        SimpleNamespace(tasks={"a": Task(None, None), "b": Task(None, None)}),
        None,
        None,
        [listener],
        None,
    )
    for trial, words in (("a", "no compiler"), ("b", "no compiler"), ("b", "another")):
        news.on_trial_result(1, [], SimpleNamespace(trial_id=trial), {"note": words})
    assert listener.heard == ["no compiler", "another"]
