"""MLflow as a team runs it: a server with PostgreSQL and an S3 store, killed, started again, looked at in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import chromium
from scipy.ndimage import gaussian_filter
from services import answers, free_port, mlflow_server, object_store, postgres, process
from tifffile import imread, imwrite
from tracked import N_EPOCHS, rows, runs_of, small_study, store_record, trials_of

from cellray.errors import LedgerError
from cellray.ledger import Ledger
from cellray.prediction import TrainedModel
from cellray.study import Study
from cellray.tracking import MLflowTracker, check_store, register_model, sync

TWELVE = [f"loss {letter}" for letter in "abcdefghijkl"]


class Server:
    """An MLflow server that can be killed and started again on what it had stored."""

    def __init__(self, folder: Path, backend: str | None = None, s3: str | None = None) -> None:
        self._where = {"backend": backend, "artifacts": "s3://cellray/runs" if s3 else None, "s3": s3}
        self._folder, self._port, self._running = folder, free_port(), ExitStack()
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._running.enter_context(mlflow_server(self._folder, self._port, **self._where))

    def kill(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with PostgreSQL and an S3 store."""
    folder = tmp_path_factory.mktemp("team")
    for part in ("postgres", "s3"):
        (folder / part).mkdir()
    with postgres(folder / "postgres") as backend, object_store(folder / "s3") as s3:
        server = Server(folder / "server", backend, s3)
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with SQLite and a folder."""
    server = Server(tmp_path_factory.mktemp("alone"))
    server.start()
    yield server
    server.kill()


def ledger_of(study: Study, folder: Path) -> Ledger:
    ledger = Ledger(str(folder / "storage"), study.name)
    ledger.write("study.yaml", study.dump_yaml().encode())
    ledger.write_plan(trials_of(study))
    return ledger


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_an_outage_costs_the_sweep_a_warning_and_nothing_else(team, tmp_path):
    """Two sweeps lose their server: one outlives the outage, the other ends within it and is repaired."""
    outlives, ends = small_study(name="outlives"), small_study(name="ends")
    ledger, other = ledger_of(outlives, tmp_path), ledger_of(ends, tmp_path)
    plan, said, complained = trials_of(outlives), [], []
    uri = team.uri.replace("http://", "http://somebody:s3cret@")
    check_store(uri)
    tracker = MLflowTracker(ledger, uri, say=said.append, interval_s=0.3)
    short = MLflowTracker(other, uri, say=complained.append, interval_s=0.3)
    tracker.on_start(outlives, plan)
    tracker.on_ready()
    short.on_start(ends, trials_of(ends))
    short.on_ready()
    tracker.on_end(store_record(ledger, plan[0], model=True))
    for row in rows()[:3]:
        tracker.on_epoch(plan[1].trial, row)
    short.on_end(store_record(other, trials_of(ends)[0]))
    wait_for(lambda: tracker.n_written == 1 and short.n_written == 1)

    team.kill()
    start = time.perf_counter()
    for row in rows()[3:]:
        tracker.on_epoch(plan[1].trial, row)
    for planned in plan[1:3]:
        tracker.on_end(store_record(ledger, planned, outcome="collapsed" if planned is plan[1] else "finished"))
    for planned in trials_of(ends)[1:]:
        short.on_end(store_record(other, planned))
    short.on_finish()
    assert time.perf_counter() - start < 1  # most of it the ledger's
    wait_for(lambda: said)
    trouble = short.close(timeout=5)
    assert trouble is not None
    assert complained[-1] == trouble
    assert "3 of 4 records" in trouble
    assert "cellray track sync ends" in trouble
    with pytest.raises(LedgerError, match=team.uri.removeprefix("http://")) as unreachable:
        check_store(uri)
    assert not any("s3cret" in text for text in (*said, *complained, str(unreachable.value)))

    team.start()
    tracker.on_end(store_record(ledger, plan[3]))
    tracker.on_finish()
    assert tracker.close() is None
    assert len(said) == 1
    assert "does not answer (connection refused); the sweep goes on" in said[0]
    assert sync(other, ends, uri).n_written == 3
    for study, of in ((outlives, ledger), (ends, other)):
        assert sync(of, study, uri).n_written == 0
        runs = runs_of(team.uri, name=study.name)
        assert sorted(run.data.tags["cellray.key"] for run in runs) == sorted(p.key for p in trials_of(study))
        assert {run.info.status for run in runs} == {"FINISHED"}
        (top,) = runs_of(team.uri, "study", study.name)
        assert top.info.status == "FINISHED"
        counts = [top.data.metrics[f"outcome/n_{outcome}"] for outcome in ("finished", "collapsed", "missing")]
        assert counts == ([3, 1, 0] if study is outlives else [4, 0, 0])
        for run in runs:
            steps = [m.step for m in client_of(team).get_metric_history(run.info.run_id, "epoch/train_loss")]
            assert sorted(steps) == list(range(1, N_EPOCHS + 1))


def client_of(server: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=server.uri)


@pytest.mark.slow
def test_the_registered_model_finds_the_cells_that_predict_finds(team, tmp_path):
    """From a store with its files in a bucket; `test_tutorial` asks a model that is served."""
    import mlflow

    study = small_study(name="served")
    ledger = ledger_of(study, tmp_path)
    store_record(ledger, trials_of(study)[0], model=True)
    sync(ledger, study, team.uri)
    done = register_model(ledger, study, team.uri, name="cells")

    light = gaussian_filter(np.random.default_rng(0).random((120, 90, 3)), (4, 4, 0))
    raw = (65535 * (light - light.min()) / np.ptp(light)).astype(np.uint16)
    imwrite(tmp_path / "raw.tif", raw, photometric="rgb")
    settings = {"diameter_px": 9.0, "max_value": 60000.0}
    model = TrainedModel.load(ledger)
    pictures, problems = model.pictures(tmp_path / "raw.tif")
    assert problems == []
    ((_, cells, _),) = model.predict(pictures, threads=1, **settings)
    assert cells.count > 3

    mlflow.set_tracking_uri(team.uri)
    served = mlflow.pyfunc.load_model(f"models:/cells/{done.version}")
    rows = served.predict(pd.DataFrame({"image": [(tmp_path / "raw.tif").read_bytes()]}), params=settings)
    found = rows.iloc[0]
    labels = imread(io.BytesIO(base64.b64decode(found["labels"])))
    np.testing.assert_array_equal(labels, cells.labels)
    assert found["count"] == cells.count == len(found["cells"])
    np.testing.assert_allclose(pd.DataFrame(found["cells"]), cells.table(), rtol=1e-6)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, Study]:
    """Twelve configurations with two seeds: the later in the alphabet the better, but for the last, which collapsed."""
    losses = [{"label": label, "loss": {"name": "dice", "settings": {"smooth": i + 1.0}}}
              for i, label in enumerate(TWELVE)]  # fmt: skip
    study = small_study(name="twelve", configurations=losses)
    ledger = ledger_of(study, tmp_path_factory.mktemp("twelve"))
    for planned in trials_of(study):
        lost = planned.label == TWELVE[-1] and planned.seed == 5
        f1 = 0.5 + 0.02 * TWELVE.index(planned.label) + 0.001 * planned.seed
        store_record(ledger, planned, f1=0.0 if lost else f1, outcome="collapsed" if lost else "finished")
    return ledger, study


@pytest.mark.slow
def test_the_page_is_one_process_that_says_where_the_study_is(twelve, tmp_path):
    ledger, study = twelve
    uri, port = f"sqlite:///{tmp_path / 'mlflow.db'}", free_port()
    sync(ledger, study, uri)
    command = [str(Path(sys.executable).with_name("cellray")), "ui", "--tracking-uri", uri, "--port", str(port)]
    log = tmp_path / "ui.log"
    with process(command, log, lambda: answers(f"http://127.0.0.1:{port}/health")) as ui:
        assert Path(f"/proc/{ui.pid}/task/{ui.pid}/children").read_text() == ""
        asked = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=twelve"
        with urllib.request.urlopen(asked, timeout=60) as answer:
            experiment = json.load(answer)["experiment"]["experiment_id"]
        ui.terminate()
        ui.wait(timeout=20)
    first, page = log.read_text().splitlines()
    assert first == f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)"
    assert page.startswith(f"  twelve: http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine")


@contextmanager
def browser() -> Iterator[Any]:
    """A context of Chromium, 1400 by 900."""
    with chromium() as started:
        context = started.new_context(viewport={"width": 1400, "height": 900})
        context.set_default_timeout(60_000)
        yield context


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "team"])
def test_configurations_are_compared_in_the_stock_page(kind, twelve, request, tmp_path):
    server, (ledger, study) = request.getfixturevalue(kind), twelve
    sync(ledger, study, server.uri)
    experiment = client_of(server).get_experiment_by_name("twelve").experiment_id
    pictures = Path(os.environ.get("CELLRAY_PICTURES") or tmp_path)  # to look at what the page shows

    with browser() as context:
        start = context.new_page()
        start.goto(f"{server.uri}/#/experiments/{experiment}/runs")

        def follow(name: str) -> Any:
            with context.expect_page() as opened:
                start.get_by_role("link", name=name, exact=True).click()
            return opened.value

        def picture(page: Any, name: str) -> None:
            page.screenshot(path=pictures / f"{kind}-{name}.png")

        table = follow("table")
        table.get_by_text("12 matching runs").wait_for()
        table.get_by_role("link", name=TWELVE[0]).wait_for()
        picture(table, "table")
        left = {}
        for head in table.get_by_role("columnheader").all():
            if "/" in head.inner_text():
                left[head.inner_text()] = head.bounding_box()["x"]
        assert sorted(left, key=left.__getitem__)[:2] == ["test/f1_iou", "test/worst/f1_iou"]
        names = [text for text in table.get_by_role("link").all_inner_texts() if text in TWELVE]
        assert names == [*TWELVE[-2::-1], TWELVE[-1]]  # best first; the one with a collapse last

        charts = follow("charts")
        charts.get_by_text("Parallel Coordinates", exact=True).wait_for()
        charts.locator("svg text", has_text="configuration").first.wait_for()  # the first axis
        picture(charts, "charts")

        run = next(r for r in runs_of(server.uri, name="twelve"))
        start.goto(f"{server.uri}/#/experiments/{experiment}/runs/{run.info.run_id}/system-metrics")
        start.get_by_text("peak_memory_mega").first.wait_for()
        picture(start, "system")
