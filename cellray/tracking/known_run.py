"""A run in an MLflow store, and what is known of it without asking: only what differs is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellray.record import EpochRow
from cellray.scratch import scratch_folder
from cellray.tracking import values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

METRICS_A_REQUEST, PARAMS_A_REQUEST = 800, 100  # MLflow: 1000 of all kinds together, 100 parameters, 1 MB


class EndedEpoch(NamedTuple):
    """A row of the history, and when that epoch ended."""

    row: EpochRow
    ms: int
    """Since 1970."""


class KnownRun:
    """One run; errors of the store pass through, and what is known then is no longer to be trusted.

    Args:
        client: Of the store.
        run: As the store gave it.
        now: Milliseconds, later each time: of two values of a step, MLflow takes the later.
        is_new: Whether it was made a moment ago, so that it has no epochs.
    """

    def __init__(self, client: MlflowClient, run: Run, now: Callable[[], int], *, is_new: bool = False) -> None:
        self._client, self._now = client, now
        self.id, self.status = run.info.run_id, run.info.status
        self.tags, self._params, self._metrics = dict(run.data.tags), dict(run.data.params), dict(run.data.metrics)
        self._epochs: set[int] | None = set() if is_new else None  # those whose metrics it has; None: not asked yet

    def set_tag(self, name: str, value: str) -> None:
        """Give it a tag."""
        if self.tags.get(name) != value:
            self._client.set_tag(self.id, name, value)
            self.tags[name] = value

    def set_status(self, status: str, ended: int | None = None) -> None:
        """Let it run, or end it at a time in milliseconds since 1970 (None: now)."""
        if self.status != status:
            if status == "RUNNING":
                self._client.update_run(self.id, status)
            else:
                self._client.set_terminated(self.id, status, ended)
            self.status = status

    def log(
        self,
        *,
        epochs: Sequence[EndedEpoch] = (),
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log what differs from what it has; a parameter can't change, so a tag names those that should.

        Args:
            epochs: Of its trial; an epoch that it has is left out.
            metrics: Values at the end, by name.
            params: By name.
            tags: By name.
        """
        from mlflow.entities import Metric, Param, RunTag

        metrics, params, tags, now = metrics or {}, params or {}, dict(tags or {}), self._now()
        news = self._new_epochs(epochs) if epochs else []
        news += [Metric(name, value, now, 0) for name, value in metrics.items() if self._metrics.get(name) != value]
        changed = sorted(name for name, value in params.items() if self._params.get(name, value) != value)
        if changed or "cellray.settings_changed" in self.tags:
            tags["cellray.settings_changed"] = values.cut(", ".join(changed))
        new_params = [Param(name, value) for name, value in params.items() if name not in self._params]
        new_tags = [RunTag(name, value) for name, value in tags.items() if self.tags.get(name) != value]
        while news or new_params or new_tags:
            rest = news[METRICS_A_REQUEST:], new_params[PARAMS_A_REQUEST:], new_tags[PARAMS_A_REQUEST:]
            self._client.log_batch(
                self.id, news[:METRICS_A_REQUEST], new_params[:PARAMS_A_REQUEST], new_tags[:PARAMS_A_REQUEST]
            )
            news, new_params, new_tags = rest
        if self._epochs is not None:
            self._epochs |= {epoch.row["epoch"] for epoch in epochs}
        self._metrics.update(metrics)
        self._params = {**params, **self._params}
        self.tags.update(tags)

    def _new_epochs(self, epochs: Sequence[EndedEpoch]) -> list[Metric]:
        """Metrics of the epochs that it lacks, so that one logged live isn't drawn twice."""
        from mlflow.entities import Metric

        if self._epochs is None:
            self._epochs = {metric.step for metric in self._client.get_metric_history(self.id, values.EPOCH_LOSS)}
        metrics = [
            Metric(name, value, ms, row["epoch"])
            for row, ms in epochs
            if row["epoch"] not in self._epochs
            for name, value in values.epoch_metrics(row).items()
        ]
        # The loss, by which an epoch is known to be there, goes last: requests may end between two.
        return sorted(metrics, key=lambda metric: metric.key == values.EPOCH_LOSS)

    def put_files(self, files: Mapping[str, bytes], tag: str | None = None) -> None:
        """Upload files under their paths; with a tag that remembers their digest, only if they changed."""
        digest = files_digest(files)
        if tag is not None and self.tags.get(tag) == digest:
            return
        with scratch_folder("mlflow") as folder:
            for path, data in files.items():
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            self._client.log_artifacts(self.id, folder)
        if tag is not None:
            self.set_tag(tag, digest)


def files_digest(files: Mapping[str, bytes]) -> str:
    """Short hash of files and their paths."""
    return values.digest({path: values.digest(data) for path, data in files.items()})
