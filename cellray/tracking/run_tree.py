"""The runs study › configuration › seed of one study in an MLflow store, found again by their tags or made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from cellray.study import Study
from cellray.tracking.known_run import KnownRun
from cellray.tracking.stores import artifact_root, open_client
from cellray.tracking.values import cut

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

Level = Literal["study", "configuration", "seed"]

NOTE = "mlflow.note.content"
"""Tag of a run or an experiment that the web page shows as its description."""


class KnownStore(NamedTuple):
    """A store that was asked what it has of a study."""

    client: MlflowClient
    experiment: Experiment
    experiment_tags: dict[str, str]
    runs: dict[tuple[str, str], KnownRun]
    """By kind and key."""


class RunTree:
    """The runs of one study; a call that is repeated, in another process too, makes none twice.

    Args:
        study: Its name, question and protocol are shown.
        tracking_uri: Any that MLflow takes.
    """

    def __init__(self, study: Study, tracking_uri: str) -> None:
        self._study, self._uri = study, tracking_uri
        self._known: KnownStore | None = None
        self._last_ms = 0

    def forget(self) -> None:
        """Trust nothing remembered of the store: a request that failed may have been carried out."""
        self._known = None

    @property
    def store(self) -> KnownStore:
        """The store, with the study's experiment found or made and its runs known."""
        if self._known is None:
            client = open_client(self._uri)
            experiment = client.get_experiment_by_name(self._study.name)
            if experiment is None:
                made = client.create_experiment(
                    self._study.name,
                    artifact_location=artifact_root(self._uri),
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
                experiment = client.get_experiment(made)
            elif experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            runs = self._find_runs(client, experiment.experiment_id)
            self._known = KnownStore(client, experiment, dict(experiment.tags), runs)
        return self._known

    def _find_runs(self, client: MlflowClient, experiment: str) -> dict[tuple[str, str], KnownRun]:
        found: dict[tuple[str, str], KnownRun] = {}
        mine, oldest_first = f"tags.`cellray.study` = '{self._study.name}'", ["attributes.start_time ASC"]
        token: str | None = None
        while True:
            page = client.search_runs([experiment], mine, order_by=oldest_first, page_token=token)
            for run in page:
                place = run.data.tags["cellray.kind"], run.data.tags["cellray.key"]
                found.setdefault(place, KnownRun(client, run, self.now))
            token = page.token
            if not token:
                return found

    def now(self) -> int:
        """Milliseconds since 1970, later each time."""
        self._last_ms = max(int(time.time() * 1000), self._last_ms + 1)
        return self._last_ms

    def tag_experiment(self, name: str, value: str) -> None:
        """Give the experiment a tag."""
        store = self.store
        if store.experiment_tags.get(name) != value:
            store.client.set_experiment_tag(store.experiment.experiment_id, name, value)
            store.experiment_tags[name] = value

    def of_kind(self, kind: Level) -> list[KnownRun]:
        """The runs of one level that there are, ordered by label."""
        runs = {key: run for (level, key), run in self.store.runs.items() if level == kind}
        return [runs[key] for key in sorted(runs, key=lambda key: (runs[key].tags.get("cellray.label", ""), key))]

    def find(self, kind: Level, key: str) -> KnownRun | None:
        """A run, if there is one."""
        return self.store.runs.get((kind, key))

    def study(self) -> KnownRun:
        """The study's run."""
        tags = {NOTE: cut(self._study.question), "cellray.protocol": self._study.protocol}
        return self._run("study", self._study.name, self._study.name, tags)

    def configuration(self, label: str) -> KnownRun:
        """A configuration's run."""
        return self._run("configuration", label, label, {"cellray.label": label}, parent=self.study())

    def seed(self, key: str, label: str, seed: int, started: int | None = None) -> KnownRun:
        """A trial's run; a new one begins at a time in milliseconds since 1970 (None: now)."""
        tags = {"cellray.label": label, "cellray.seed": str(seed)}
        return self._run("seed", key, f"{label} · seed {seed}", tags, self.configuration(label), started)

    def _run(
        self,
        kind: Level,
        key: str,
        name: str,
        tags: Mapping[str, str],
        parent: KnownRun | None = None,
        started: int | None = None,
    ) -> KnownRun:
        """The run of that kind and key: the one there is, hung under its parent, or a new one."""
        store = self.store
        place = {"mlflow.parentRunId": parent.id} if parent else {}
        run = store.runs.get((kind, key))
        if run is None:
            own = {"cellray.study": self._study.name, "cellray.kind": kind, "cellray.key": key, **tags, **place}
            made = store.client.create_run(store.experiment.experiment_id, start_time=started, tags=own, run_name=name)
            run = store.runs[kind, key] = KnownRun(store.client, made, self.now, is_new=True)
        for tag, value in place.items():
            run.set_tag(tag, value)  # a configuration may have been renamed since
        return run
