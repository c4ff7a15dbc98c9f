"""The tree study › configuration › seed in an MLflow store: every call brings runs up to date, and can be repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellray.scratch import scratch_folder
from cellray.tracking import values, views
from cellray.tracking.models import ModelSaver
from cellray.tracking.stores import artifact_root, connect, scrub
from cellray.tracking.values import Record

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Metric

    from cellray.ledger import Ledger

PROJECTION = 2
"""Raised when a record is shown otherwise: the next sync then writes every run again."""

MODEL_NAME = "best"
NOTE = "mlflow.note.content"
METRICS_A_REQUEST, PARAMS_A_REQUEST = 800, 100  # MLflow: 1000 of all kinds together, 100 parameters, 1 MB

Epoch = tuple[Mapping[str, Any], int]
"""A row of the history and when it ended, in milliseconds."""


@dataclass
class _Node:
    """What is known of a run without asking the store."""

    id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: set[int] | None = None
    """Epochs whose metrics it has; None: not asked yet."""


class Projection:
    """Shows one study of a ledger in an MLflow store.

    Runs are found again by their tags, so a call repeated after an error, or in another process, changes nothing that
    is right already. Errors of the store pass through; after one, `forget` makes the next call look afresh.

    Args:
        ledger: Where the records, tables and checkpoints are.
        study: Its name, question and protocol are shown.
        tracking_uri: Any that MLflow takes.
        models: Log the best checkpoint of each trial as a model.
    """

    def __init__(self, ledger: Ledger, study: Any, tracking_uri: str, *, models: bool = True) -> None:
        self._ledger, self._study, self._uri = ledger, study, tracking_uri
        self._saver = ModelSaver() if models else None
        self._client: mlflow.MlflowClient | None = None
        self._experiment = ""
        self._experiment_tags: dict[str, str] = {}
        self._created_ms = 0
        self._nodes: dict[tuple[str, str], _Node] = {}
        self._last_ms = 0

    def forget(self) -> None:
        """Trust nothing remembered of the store: a request that failed may have been carried out."""
        self._client = None
        self._nodes = {}

    @property
    def client(self) -> mlflow.MlflowClient:
        """The client, with the study's experiment found or made and its runs known."""
        if self._client is None:
            client = connect(self._uri)
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
            self._experiment, self._experiment_tags = experiment.experiment_id, dict(experiment.tags)
            self._created_ms = int(experiment.creation_time or 0)
            self._nodes = self._find_nodes(client)
            self._client = client
        return self._client

    def _find_nodes(self, client: mlflow.MlflowClient) -> dict[tuple[str, str], _Node]:
        nodes: dict[tuple[str, str], _Node] = {}
        token = None
        while True:
            page = client.search_runs(
                [self._experiment],
                f"tags.`cellray.study` = '{self._study.name}'",
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                place = run.data.tags["cellray.kind"], run.data.tags["cellray.key"]
                node = _Node(
                    run.info.run_id,
                    run.info.status,
                    dict(run.data.tags),
                    dict(run.data.params),
                    dict(run.data.metrics),
                )
                nodes.setdefault(place, node)
            token = page.token
            if not token:
                return nodes

    # The three levels.

    def study(self, counts: Mapping[str, float], sets: Sequence[str] = ()) -> None:
        """Bring the study's run up to date: its question, its resolved YAML, how many trials ended how.

        Args:
            counts: See `values.outcome_counts`.
            sets: Names of the sets that are scored, `test` first; with them the web page gets its saved view.
        """
        node = self._study_node()
        self._write(node, metrics=counts)
        if sets:
            self._experiment_tag(
                views.VIEW_TAG, views.saved_view(self._study.evaluation.rank_by, sets, self._created_ms)
            )
            if views.is_note(self._experiment_tags.get(NOTE, "")):  # and not what somebody wrote there
                self._experiment_tag(NOTE, self._note())
        if self._ledger.exists("study.yaml"):
            self._put_files(node, "cellray.study_digest", {"study.yaml": self._ledger.read("study.yaml")})

    def configuration(
        self, label: str, metrics: Mapping[str, float], settings: Mapping[str, Any] | None, *, complete: bool
    ) -> None:
        """Bring a configuration's run up to date.

        Args:
            label: Of the configuration.
            metrics: See `values.seed_summary`.
            settings: Of any of its trials; None if none has ended.
            complete: Whether every seed has its record.
        """
        node = self._configuration_node(label)
        params = {"configuration": label, **values.flatten(settings)} if settings else {}
        self._write(node, metrics=metrics, params=params)
        self._status(node, "FINISHED" if complete else "RUNNING")

    def epochs(self, key: str, label: str, seed: int, epochs: Sequence[Epoch]) -> None:
        """Add epochs to a trial's run, opening it if it is the first."""
        node = self._seed_node(key, label, seed)
        self._status(node, "RUNNING")
        self._write(node, epochs=epochs)

    def record(self, record: Record, label: str) -> bool:
        """Show a record whole: history, metrics, settings, files, model.

        Returns:
            Whether anything had to be written.
        """
        key = record["key"]
        digest = values.digest([PROJECTION, self._saver is not None, label, record])
        self.client  # noqa: B018  finds the runs
        known = self._nodes.get(("seed", key))
        if known is not None and known.tags.get("cellray.digest") == digest:
            return False
        started = values.milliseconds(record.get("provenance", {}).get("started"))
        node = self._seed_node(key, label, record["seed"], started)
        tags = values.record_tags(record)
        model_id, trouble = self._model(node, record)
        if trouble:
            tags["cellray.model_error"] = trouble
        self._write(
            node,
            epochs=self._history(key, started),
            metrics=values.final_metrics(record),
            params={"configuration": label, "seed": str(record["seed"]), **values.flatten(record["settings"])},
            tags=tags,
            model_id=model_id,
        )
        self._datasets(node, record)
        self._put_files(node, None, self._files(record))
        ended = values.milliseconds(record.get("provenance", {}).get("ended"))
        self._status(node, "FAILED" if record["outcome"] == "failed" else "FINISHED", ended)
        self._tag(node, "cellray.digest", digest)  # last, so that half a record is written again
        return True

    def report(self) -> None:
        """Put the files of the study's report folder beside its run, if they changed."""
        files = {path: self._ledger.read(path) for path in self._paths("report")}
        if files:
            self._put_files(self._study_node(), "cellray.report_digest", files)

    def end(self, *, complete: bool) -> None:
        """Close the study's run, and every run that nobody continues any more."""
        study = self._study_node()
        for (kind, _), node in list(self._nodes.items()):
            if node is not study and node.status == "RUNNING" and not (kind == "configuration" and complete):
                self._status(node, "KILLED")
        self._status(study, "FINISHED" if complete else "KILLED")

    def has_study(self) -> bool:
        """Whether the store knows the study."""
        self.client  # noqa: B018
        return ("study", self._study.name) in self._nodes

    # Runs.

    def _study_node(self) -> _Node:
        tags = {NOTE: values.shorten(self._study.question), "cellray.protocol": self._study.protocol}
        return self._node("study", self._study.name, self._study.name, tags=tags)

    def _configuration_node(self, label: str) -> _Node:
        return self._node("configuration", label, label, parent=self._study_node(), tags={"cellray.label": label})

    def _seed_node(self, key: str, label: str, seed: int, started: int | None = None) -> _Node:
        parent = self._configuration_node(label)
        tags = {"cellray.label": label, "cellray.seed": str(seed)}
        return self._node("seed", key, f"{label} · seed {seed}", parent=parent, tags=tags, started=started)

    def _node(
        self,
        kind: str,
        key: str,
        name: str,
        *,
        tags: Mapping[str, str],
        parent: _Node | None = None,
        started: int | None = None,
    ) -> _Node:
        """The run of that kind and key: the one there is, hung under its parent, or a new one."""
        client = self.client
        place = {"mlflow.parentRunId": parent.id} if parent else {}
        node = self._nodes.get((kind, key))
        if node is None:
            own = {
                "cellray.study": self._study.name,
                "cellray.kind": kind,
                "cellray.key": key,
                **tags,
                **place,
            }
            run = client.create_run(self._experiment, start_time=started, tags=own, run_name=name)
            node = _Node(run.info.run_id, "RUNNING", dict(run.data.tags), epochs=set())
            self._nodes[kind, key] = node
        for tag, value in place.items():
            self._tag(node, tag, value)  # a configuration may have been renamed since
        return node

    def _tag(self, node: _Node, name: str, value: str) -> None:
        if node.tags.get(name) != value:
            self.client.set_tag(node.id, name, value)
            node.tags[name] = value

    def _experiment_tag(self, name: str, value: str) -> None:
        if self._experiment_tags.get(name) != value:
            self.client.set_experiment_tag(self._experiment, name, value)
            self._experiment_tags[name] = value

    def _note(self) -> str:
        """The study's description, with links to the runs that there are."""
        ids: dict[str, list[str]] = {"study": [], "configuration": [], "seed": []}
        by_name = sorted(self._nodes.items(), key=lambda item: (item[1].tags.get("cellray.label", ""), item[0]))
        for (kind, _), node in by_name:
            ids[kind].append(node.id)
        question = values.shorten(self._study.question)
        return views.note(question, self._experiment, ids["configuration"], ids["seed"])

    def _status(self, node: _Node, status: str, ended: int | None = None) -> None:
        if node.status != status:
            if status == "RUNNING":
                self.client.update_run(node.id, status)
            else:
                self.client.set_terminated(node.id, status, ended)
            node.status = status

    # Content.

    def _new_epochs(self, node: _Node, epochs: Sequence[Epoch]) -> list[Metric]:
        """Metrics of the epochs that the run lacks, so that one logged live isn't drawn twice."""
        from mlflow.entities import Metric

        if node.epochs is None:
            logged = self.client.get_metric_history(node.id, values.EPOCH_LOSS)
            node.epochs = {metric.step for metric in logged}
        metrics = [
            Metric(name, value, ms, int(row["epoch"]))
            for row, ms in epochs
            if int(row["epoch"]) not in node.epochs
            for name, value in values.epoch_metrics(row).items()
        ]
        # The loss, by which an epoch is known to be there, goes last: requests may end between two.
        return sorted(metrics, key=lambda metric: metric.key == values.EPOCH_LOSS)

    def _history(self, key: str, started: int | None) -> list[Epoch]:
        """The stored epochs; each ended after the seconds of all before it."""
        if not self._ledger.exists(f"trials/{key}/history.parquet"):
            return []
        rows: list[Any] = self._ledger.table(key, "history").to_dict("records")
        ms = float(started if started is not None else self._now())
        epochs: list[Epoch] = []
        for row in rows:
            seconds = row.get("seconds") or 0.0
            ms += 1000 * seconds if seconds == seconds else 0.0
            epochs.append((row, int(ms)))
        return epochs

    def _write(
        self,
        node: _Node,
        *,
        epochs: Sequence[Epoch] = (),
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
    ) -> None:
        """Log what differs from what the run has; a parameter can't change, so a tag names those that should."""
        from mlflow.entities import Metric, Param, RunTag

        metrics, params, tags = metrics or {}, params or {}, dict(tags or {})
        now = self._now()
        history = self._new_epochs(node, epochs) if epochs else []
        news = [
            Metric(name, value, now, 0, model_id=model_id, run_id=node.id if model_id else None)
            for name, value in metrics.items()
            if model_id or node.metrics.get(name) != value
        ]
        changed = sorted(name for name, value in params.items() if node.params.get(name, value) != value)
        if changed or "cellray.settings_changed" in node.tags:
            tags["cellray.settings_changed"] = values.shorten(", ".join(changed))
        new_params = {name: value for name, value in params.items() if name not in node.params}
        new_tags = {name: value for name, value in tags.items() if node.tags.get(name) != value}
        self._send(
            node,
            history + news,
            [Param(name, value) for name, value in new_params.items()],
            [RunTag(name, value) for name, value in new_tags.items()],
        )
        if node.epochs is not None:
            node.epochs |= {int(row["epoch"]) for row, _ in epochs}
        node.metrics.update(metrics)
        node.params.update(new_params)
        node.tags.update(new_tags)

    def _send(self, node: _Node, metrics: list[Metric], params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        """As few requests as the limits of one allow."""
        while metrics or params or tags:
            self.client.log_batch(
                node.id, metrics[:METRICS_A_REQUEST], params[:PARAMS_A_REQUEST], tags[:PARAMS_A_REQUEST]
            )
            metrics = metrics[METRICS_A_REQUEST:]
            params, tags = params[PARAMS_A_REQUEST:], tags[PARAMS_A_REQUEST:]

    def _files(self, record: Record) -> dict[str, bytes]:
        """The record itself, its settings unshortened, and its overlays."""
        folder = f"trials/{record['key']}"
        files = {
            "trial.json": self._ledger.read(f"{folder}/trial.json"),
            "config.json": json.dumps(record["settings"], indent=1, sort_keys=True).encode(),
        }
        for overlay in record.get("overlays", []):
            if self._ledger.exists(f"{folder}/{overlay['file']}"):
                files[overlay["file"]] = self._ledger.read(f"{folder}/{overlay['file']}")
        return files

    def _datasets(self, node: _Node, record: Record) -> None:
        """Name the sets of images that a trial used; MLflow leaves out those that the run has already."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    found.name,
                    found.digest,
                    source_type="local",
                    source=json.dumps({"uri": found.source}),
                    profile=json.dumps({"num_rows": found.n_images, "diameter_px": found.diameter_px}),
                ),
                [InputTag("mlflow.data.context", found.context)],
            )
            for found in values.dataset_inputs(record)
        ]
        if inputs:
            self.client.log_inputs(node.id, inputs)

    def _put_files(self, node: _Node, tag: str | None, files: Mapping[str, bytes]) -> None:
        """Upload files under their paths; with a tag that remembers their digest, only if they changed."""
        digest = values.digest({path: values.digest(data) for path, data in files.items()})
        if tag is not None and node.tags.get(tag) == digest:
            return
        with scratch_folder("mlflow") as folder:
            for path, data in files.items():
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            self.client.log_artifacts(node.id, folder)
        if tag is not None:
            self._tag(node, tag, digest)

    def _model(self, node: _Node, record: Record) -> tuple[str | None, str | None]:
        """Log the best checkpoint as a model: its id if it is new, and why it can't be one."""
        checkpoint = None if record["outcome"] == "failed" else self._ledger.load_checkpoint(record["key"], "best")
        if self._saver is None or checkpoint is None:
            return None, None
        digest = values.digest(checkpoint)
        for model in self.client.search_logged_models([self._experiment], f"source_run_id = '{node.id}'"):
            if model.tags.get("cellray.checkpoint") == digest and model.status == "READY":
                return None, None
            self.client.delete_logged_model(model.model_id)
        tags = {"cellray.study": self._study.name, "cellray.key": record["key"], "cellray.checkpoint": digest}
        model = self.client.create_logged_model(
            self._experiment, MODEL_NAME, source_run_id=node.id, tags=tags, model_type="segmentation"
        )
        try:
            folder = self._saver.save(record["settings"], checkpoint, run_id=node.id, model_id=model.model_id)
        except Exception as error:  # a network that can't be exported; the run is worth having without it
            self.client.delete_logged_model(model.model_id)
            return None, values.shorten(scrub(error, self._uri))
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        from mlflow.entities import LoggedModelOutput

        self.client.log_outputs(node.id, [LoggedModelOutput(model.model_id, record.get("best_epoch") or 0)])
        return model.model_id, None

    def _paths(self, folder: str) -> Iterable[str]:
        """Every file in a folder of the ledger and below."""
        for name in self._ledger.names(folder):
            path = f"{folder}/{name}"
            if self._ledger.exists(path):
                yield path
            else:
                yield from self._paths(path)

    def _now(self) -> int:
        """Milliseconds, later each time: of two values of a step, MLflow takes the later."""
        self._last_ms = max(int(time.time() * 1000), self._last_ms + 1)
        return self._last_ms
