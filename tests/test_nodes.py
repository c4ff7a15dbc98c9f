"""Real Ray nodes: a sweep looks at each before its first trial, and uses what one trial leaves for the next."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.cluster_utils import Cluster
from tiny_study import draw_images, tiny_study

from cellray.errors import DataError, StudyError
from cellray.ledger import Ledger
from cellray.observers import Observer
from cellray.record import TrialRecord
from cellray.study import Trial
from cellray.sweep import connect, run_sweep
from cellray.sweep.nodes import _look
from cellray.trial import Sets

PLACE = "CELLRAY_TEST_PLACE"
"""Names the folder of the images, and may name another one on another node."""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images") / "disks")


@pytest.fixture(scope="module")
def two_nodes(images, tmp_path_factory):
    """A cluster whose second node has a place of its own; gives its address and that place."""
    other = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, str(images.parent))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1, env_vars={PLACE: str(other)})
            cluster.wait_for_nodes()
            yield SimpleNamespace(address=cluster.address, other=other)
        finally:
            cluster.shutdown()


def sweep(cluster: SimpleNamespace, storage: Path) -> list[dict]:
    study = tiny_study(Path(f"${PLACE}/disks"))
    ledger = Ledger(str(storage), study.name)
    return run_sweep(study, Sets.open(study.data), ledger, cluster=lambda: connect(cluster.address))


@pytest.mark.slow
def test_a_node_without_the_images_is_named_before_any_trial(two_nodes, tmp_path):
    shutil.rmtree(two_nodes.other / "disks", ignore_errors=True)
    begun = time.monotonic()
    with pytest.raises(StudyError, match=r"node [\d.]+ can't run this study: .*disks: no such folder"):
        sweep(two_nodes, tmp_path)
    assert time.monotonic() - begun < 120
    assert not list(tmp_path.glob("tiny/trials/*"))


@pytest.mark.slow
def test_a_node_with_other_images_is_named(two_nodes, images, tmp_path):
    shutil.copytree(images, two_nodes.other / "disks", dirs_exist_ok=True)
    names = sorted(path.name for path in (images / "trainval" / "images").iterdir())
    shutil.copy(images / "trainval" / "images" / names[1], two_nodes.other / "disks" / "trainval" / "images" / names[0])
    with pytest.raises(StudyError, match="dataset 'disks' has other images there than here"):
        sweep(two_nodes, tmp_path)


@pytest.mark.slow
def test_nodes_that_see_the_same_share_the_trials(two_nodes, images, tmp_path):
    shutil.copytree(images, two_nodes.other / "disks", dirs_exist_ok=True)
    assert [record.outcome for record in sweep(two_nodes, tmp_path)] == ["finished"] * 2


def test_what_a_node_says(images, tmp_path):
    import cellray

    study = tiny_study(images)
    ledger = Ledger(str(tmp_path), study.name)
    data = study.data.model_dump_json()
    assert _look(data, ledger, "9.9")[0] == f"it has cellray {cellray.__version__}, this is 9.9"
    assert "doesn't see the ledger" in _look(data, ledger, cellray.__version__)[0]
    with ledger.lease():
        problem, found = _look(data, ledger, cellray.__version__)
        assert (problem, found) == ("", {"disks": Sets.open(study.data).train.fingerprint})
        moved = json.loads(data)
        moved["train"]["path"] = str(tmp_path / "elsewhere")
        assert "no such folder" in _look(json.dumps(moved), ledger, cellray.__version__)[0]


def test_a_trial_is_refused_where_training_or_external_images_are_others(images, tmp_path):
    study = tiny_study(images)
    (trial, _), sets = study.trials(), Sets.open(study.data)
    key, evaluation_key = sets.keys(trial)
    sets.expect(trial, (key, evaluation_key))
    for keys in (("0" * 16, evaluation_key), (key, "0" * 16)):
        with pytest.raises(DataError, match="are not those of the sweep"):
            sets.expect(trial, keys)


def test_a_sweep_through_ray_client_is_refused_with_the_command_that_works():
    with pytest.raises(StudyError, match=r"cellray submit --address http://HOST:8265"), connect("ray://head:10001"):
        pass


class Order(Observer):
    """Remembers which trials started and ended."""

    def __init__(self) -> None:
        self.news: list[str] = []

    def on_trial_start(self, trial: Trial) -> None:
        self.news.append(f"start {trial.label}")

    def on_end(self, record: TrialRecord) -> None:
        self.news.append(f"end {record.label}")


@pytest.mark.slow
def test_a_trial_is_judged_while_its_workers_train_the_next_one(tmp_path):
    """Room for the two workers of one trial, and one processor."""
    study = tiny_study(draw_images(tmp_path / "disks", n_test=200), resources={"workers": 2})
    ledger, order = Ledger(str(tmp_path / "studies"), study.name), Order()
    ledger.write("predicted/trial-the-study-had-before.0.all.pt", b"")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    try:
        how = {"observers": [order], "cluster": lambda: connect(cluster.address)}
        records = run_sweep(study, Sets.open(study.data), ledger, **how)
    finally:
        cluster.shutdown()
    assert order.news[:2] == ["start Dice", "start BCE"] and set(order.news[2:]) == {"end Dice", "end BCE"}
    assert next(record for record in records if record.label == "Dice").seconds.waiting is not None
    for record in records:
        assert record.outcome == "finished" and set(record.metrics["own"]) == {"val", "test"}
        assert record.provenance.device.endswith("1 thread, 2 workers")
    assert ledger.names("predicted") == []
