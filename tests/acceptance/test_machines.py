"""A sweep on three machines, with its ledger and MLflow on a fourth, loses one of them in every way there is.

Run by `make acceptance`. After each loss all planned trials have their record, none was trained twice, each machine
has decoded the images once, and the table is that of an undisturbed sweep on one machine.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
import yaml
from conftest import skip_or_fail
from disturb import Command, Event, read_events, watching
from machines import HERE, Machine, make_network
from services import S3_KEYS, free_port, mlflow_server, put, s3_environment
from tiny_study import draw_images, lasting, same, tiny_study
from undisturbed import assert_nothing_trained_twice, assert_shown_once

from cellray.ledger import Ledger
from cellray.study import Study, load_study
from cellray.trial import Sets, record_failure

ENTRYPOINT = yaml.safe_load((Path(__file__).parents[2] / "k8s/base/rayjob.yaml").read_text())["spec"]["entrypoint"]
"""What a head runs in Kubernetes, too; the rest is in the environment there as here."""
INTERVAL = 8
"""Steps from one checkpoint to the next."""
HEALTH = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""A machine is given up after some ten seconds, not after a minute."""


@pytest.fixture(scope="module")
def network() -> None:
    if os.geteuid() != 0 or os.readlink("/proc/self/ns/net") == os.readlink(f"/proc/{os.getppid()}/ns/net"):
        skip_or_fail("These tests make a network of their own: run them as root with `make acceptance`.")
    make_network()


@pytest.fixture(scope="module")
def store(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The object store's address."""
    with s3_environment(tmp_path_factory.mktemp("weed"), HERE) as url:
        yield url


@pytest.fixture(scope="module")
def study(store: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Twelve trials on images in the object store."""
    put(draw_images(tmp_path_factory.mktemp("images") / "disks"), "data/disks")
    training = {"steps": 480, "validate_every": INTERVAL // 2}  # an epoch has two steps
    study = tiny_study(Path("PLACE"), training=training, seeds=[0, 1, 2, 3, 4, 5])
    text = study.dump_yaml().replace("PLACE", "s3://cellray/data/disks")
    (path := tmp_path_factory.mktemp("study") / "tiny.yaml").write_text(text)
    return load_study(path)


@pytest.fixture(scope="module")
def calm(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The ledger of an undisturbed sweep on one machine."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "tiny.yaml").write_text(study.dump_yaml())
    words = ("sweep", str(folder / "tiny.yaml"), "--storage", str(folder / "studies"))
    sweep = Command(*words, folder=folder, environment={"CELLRAY_CACHE": str(folder / "cache")})
    try:
        assert sweep.end() == 0, sweep.output()
    finally:
        sweep.clean_up()
    return Ledger(str(folder / "studies"), "tiny")


class Cluster:
    """Machines with Ray on them, that ask for a token, and a sweep on the first; all gone at the end of its `with`."""

    machines: list[Machine]
    sweeps: list[Command]
    _numbers = count(11)

    def __init__(self, folder: Path, study: Study, store: str) -> None:
        self.folder, self.machines, self.sweeps = folder, [], []
        self.ledger = Ledger(f"s3://cellray/{folder.name}", "tiny")
        (folder / "tiny.yaml").write_text(study.dump_yaml())
        port = free_port()
        self.tracking = f"http://{HERE}:{port}"
        self._servers = ExitStack()
        self._servers.enter_context(mlflow_server(folder / "mlflow", port, host=HERE))
        self._environment = {
            **HEALTH,
            **watching(folder / "events.log"),
            "TMPDIR": "/tmp",
            "RAY_TMPDIR": "/tmp",
            "HOME": "/tmp",
            "CELLRAY_CACHE": "/tmp/cache",
            "CELLRAY_STORAGE": self.ledger.storage,
            "CELLRAY_TRACKING_URI": self.tracking,
            "AWS_ENDPOINT_URL": store,
            **S3_KEYS,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.kill()
        for sweep in self.sweeps:
            sweep.clean_up()
        self._servers.close()

    def start_head(self) -> Machine:
        head = self._start("--head", "--port=6379", "--include-dashboard=false")
        self._head = head
        while b"Ray runtime started" not in (self.folder / f"{head.name}.log").read_bytes():
            assert head.runs(), (self.folder / f"{head.name}.log").read_text()
            time.sleep(0.1)
        return head

    def start_worker(self) -> Machine:
        return self._start(f"--address={self._head.address}:6379")

    def _start(self, *words: str) -> Machine:
        number = next(self._numbers)
        life = [
            str(Path(sys.executable).with_name("ray")), "start", *words, f"--node-ip-address=10.77.0.{number}",
            "--num-cpus=1", "--object-store-memory=134217728", "--disable-usage-stats", "--block",
        ]  # fmt: skip
        machine = Machine(
            number, life, kept=[self.folder], environment=self._environment, log=self.folder / f"machine{number}.log"
        )
        self.machines.append(machine)
        return machine

    def ray(self, code: str) -> str:
        """What Python says on the head, connected to the cluster."""
        lines = f"import ray, time\nray.init('auto', log_to_driver=False, logging_level='ERROR')\n{code}"
        done = subprocess.run(
            [*self._head.within(), sys.executable, "-c", lines],
            env={**os.environ, **self._environment}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait_for(self, n_machines: int) -> None:
        """Wait until so many machines have joined."""
        self.ray(f"while sum(node['Alive'] for node in ray.nodes()) < {n_machines}: time.sleep(0.2)")

    def drain(self, machine: Machine, deadline_s: int) -> None:
        """Announce, as an autoscaler does, that a machine will be taken back."""
        node = self.ray(
            f"print(*(node['NodeID'] for node in ray.nodes() if node['NodeManagerAddress'] == '{machine.address}'))"
        )
        subprocess.run(
            [*self._head.within(), str(Path(sys.executable).with_name("ray")), "drain-node", "--node-id", node,
             "--address", f"{self._head.address}:6379", "--reason", "DRAIN_NODE_REASON_PREEMPTION",
             "--reason-message", "the test wants it back", "--deadline-remaining-seconds", str(deadline_s)],
            env={**os.environ, **self._environment}, check=True, timeout=120,
        )  # fmt: skip

    def sweep(self, *more: str) -> Command:
        """Start the sweep on the head, with more options."""
        words = [*ENTRYPOINT.replace("/study/study.yaml", str(self.folder / "tiny.yaml")).split(), *more]
        assert words.pop(0) == "cellray"
        sweep = Command(*words, folder=self.folder, environment=self._environment, within=self._head.within())
        self.sweeps.append(sweep)
        return sweep

    def events(self) -> list[Event]:
        return read_events(self.folder)

    def workers(self) -> set[str]:
        """Names of the machines that began a trial."""
        return {event.host for event in self.events() if event.word == "begin"}


@pytest.fixture
def cluster(study: Study, store: str, calm: Ledger, tmp_path: Path) -> Iterator[Cluster]:
    """Three machines, and nothing yet done."""
    with Cluster(tmp_path, study, store) as cluster:
        cluster.start_head()
        cluster.start_worker()
        cluster.start_worker()
        yield cluster


def wait_for_work(cluster: Cluster, sweep: Command, machine: Machine) -> str:
    """Wait until a machine is in the middle of a trial, past a checkpoint; gives the trial's label and seed."""
    found = ""

    def reached() -> bool:
        nonlocal found
        steps = [e for e in cluster.events() if (e.host, e.word) == (machine.name, "step")]
        if not steps:
            return False
        found, _, n = steps[-1].what.rpartition("/")
        return INTERVAL * 2 < int(n) < 400

    assert sweep.wait_for(reached), sweep.output()
    return found


def assert_same_result(cluster: Cluster, calm: Ledger) -> None:
    """The records and tables are those of an undisturbed sweep."""
    records, expected = cluster.ledger.records(), calm.records()
    assert [record.key for record in records] == [record.key for record in expected]
    for one, other in zip(records, expected, strict=True):
        assert same(lasting(one), lasting(other)), (one.label, one.seed)
    for table in ("ranking.csv", "pairs.csv"):
        assert cluster.ledger.read(f"report/{table}") == calm.read(f"report/{table}")


def assert_as_undisturbed(cluster: Cluster, calm: Ledger, cut: tuple[str, float] = ("", 0.0)) -> None:
    """All trials have their records, trained and shown once, with each machine's images decoded once.

    Args:
        cluster: After its last sweep.
        calm: The undisturbed sweep's ledger.
        cut: Name of a machine and from when on it was cut off: what it did then, unseen by the others, is left out.
    """
    assert_same_result(cluster, calm)
    events = cluster.events()
    seen = [event for event in events if event.host != cut[0] or event.seconds < cut[1]]
    assert_nothing_trained_twice(cluster.ledger, seen)
    assert_shown_once(cluster.tracking, cluster.ledger)
    decodings = Counter(event.host for event in events if event.word == "decode")
    assert set(decodings.values()) == {1} and decodings.keys() >= cluster.workers(), decodings


def test_a_machine_dies(cluster, calm):
    _, lost, _ = cluster.machines
    cluster.wait_for(3)
    sweep = cluster.sweep()
    wait_for_work(cluster, sweep, lost)
    lost.kill()
    assert sweep.end() == 0, sweep.output()
    assert_as_undisturbed(cluster, calm)
    assert cluster.workers() == {machine.name for machine in cluster.machines}


def test_a_machine_is_cut_off_until_it_is_given_up(cluster, calm):
    _, lost, _ = cluster.machines
    cluster.wait_for(3)
    sweep = cluster.sweep()
    trial = wait_for_work(cluster, sweep, lost)
    lost.cut()
    cut = time.time()

    def taken_over() -> bool:
        return any(
            (event.word, event.what) == ("begin", trial) and event.host != lost.name and event.seconds > cut
            for event in cluster.events()
        )

    assert sweep.wait_for(taken_over), sweep.output()
    lost.join()
    assert sweep.end() == 0, sweep.output()
    assert_as_undisturbed(cluster, calm, (lost.name, cut))
    unseen = [event for event in cluster.events() if event.host == lost.name and event.seconds > cut]
    assert {event.word for event in unseen} <= {"step", "write"}, unseen
    assert sum(event.word == "step" for event in unseen) <= INTERVAL, unseen  # then it waits for the object store


def test_the_head_dies_and_another_one_goes_on(cluster, calm):
    head, *old = cluster.machines
    cluster.wait_for(3)
    sweep = cluster.sweep()
    wait_for_work(cluster, sweep, head)
    head.kill()
    assert sweep.end() not in (0, 1), sweep.output()
    cluster.start_head()
    cluster.start_worker()  # while those of the dead head still look for it, with their trials in memory
    cluster.wait_for(2)
    again = cluster.sweep()
    assert again.end() == 0, again.output()
    assert f"on {head.name} was sweeping this ledger" in again.output()
    assert_as_undisturbed(cluster, calm)
    assert not any(machine.runs() for machine in old)


def test_a_machine_is_taken_back_and_another_one_comes(cluster, calm):
    _, lost, _ = cluster.machines
    cluster.wait_for(3)
    sweep = cluster.sweep()
    wait_for_work(cluster, sweep, lost)
    new = cluster.start_worker()
    cluster.drain(lost, 60)
    assert sweep.wait_for(lambda: new.name in cluster.workers()), sweep.output()
    lost.kill()
    assert sweep.end() == 0, sweep.output()
    assert_as_undisturbed(cluster, calm)


def test_a_finished_study_trains_nothing_and_failed_trials_again_if_asked(cluster, calm, study, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(cluster.folder / "cache"))
    broken, *_ = study.trials()
    record_failure(broken, Sets.open(study.data), cluster.ledger, "given up after 3 attempts: its machines died")
    cluster.wait_for(3)

    def sweep(*words: str) -> tuple[int, set[str]]:
        """Exit code, and the trials that were begun."""
        command = cluster.sweep(*words)
        return command.end(), {event.what for event in command.events("begin")}

    name = f"{broken.label}/{broken.seed}"
    code, begun = sweep()
    assert code == 3 and len(begun) == 11 and name not in begun
    assert sweep() == (3, set())  # the same command, on another day
    code, begun = sweep("--retry", "failed")
    assert code == 0 and begun == {name}
    assert sweep("--retry", "failed") == sweep() == (0, set())
    # MLflow keeps what it was told of the failed attempt, too: a value can't be taken back there.
    assert_same_result(cluster, calm)
    assert_nothing_trained_twice(cluster.ledger, cluster.events())
