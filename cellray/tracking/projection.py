"""What of a ledger goes into which run: every call brings runs up to date, and can be repeated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from cellray.ledger import Ledger
from cellray.record import PlannedTrial, TrialRecord, TrialSettings
from cellray.study import Study
from cellray.tracking import values, views
from cellray.tracking.inputs import dataset_inputs
from cellray.tracking.known_run import EndedEpoch, files_digest
from cellray.tracking.run_tree import NOTE, RunTree
from cellray.tracking.stores import sqlite_runs

DIGEST = "cellray.digest"
"""Tag of a trial's run: of its record, as it is shown."""
VERDICT = "cellray.verdict_digest"
"""Tag of the study's run: of the description that was written last, so that another one is somebody's own."""
PROJECTION = 3
"""Raised when a record is shown otherwise: the next sync then writes every run again."""


class Projection:
    """Shows one study of a ledger in an MLflow store.

    A call repeated after an error, or in another process, changes nothing that is right already. Errors of the store
    pass through; after one, `forget` makes the next call look afresh.

    Args:
        ledger: Where the records, tables and checkpoints are.
        study: Its name, question, protocol and metric are shown.
        tracking_uri: Any that MLflow takes.
    """

    def __init__(self, ledger: Ledger, study: Study, tracking_uri: str) -> None:
        self._ledger, self._study, self._uri = ledger, study, tracking_uri
        self._tree = RunTree(study, tracking_uri)

    def forget(self) -> None:
        """Trust nothing remembered of the store: a request that failed may have been carried out."""
        self._tree.forget()

    def has_study(self) -> bool:
        """Whether the store knows the study."""
        return self._tree.find("study", self._study.name) is not None

    def study(self, counts: Mapping[str, float], sets: Sequence[str] = ()) -> None:
        """Bring the study's run up to date: its question, its resolved YAML, how many trials ended how.

        Args:
            counts: See `seed_means.outcome_counts`.
            sets: Names of the sets that are scored, `test` first; with them the web page gets its saved view.
        """
        tree = self._tree
        run = tree.study()
        run.log(metrics=counts)
        if sets:
            experiment = tree.store.experiment
            made_ms = int(experiment.creation_time or 0)
            tree.tag_experiment(views.VIEW_TAG, views.saved_view(self._study.evaluation.rank_by, sets, made_ms))
            if views.is_note(tree.store.experiment_tags.get(NOTE, "")):  # and not what somebody wrote there
                question = values.cut(self._study.question)
                tree.tag_experiment(NOTE, views.note(question, experiment.experiment_id))
        if self._ledger.exists("study.yaml"):
            run.put_files({"study.yaml": self._ledger.read("study.yaml")}, "cellray.study_digest")

    def configuration(
        self, label: str, metrics: Mapping[str, float], settings: TrialSettings | None, *, complete: bool
    ) -> None:
        """Bring a configuration's run up to date.

        Args:
            label: Of the configuration.
            metrics: See `seed_means.seed_summaries`.
            settings: Of any of its trials; None if none has ended.
            complete: Whether every seed has its record.
        """
        run = self._tree.configuration(label)
        params = {"configuration": label, **values.flatten(settings.plain())} if settings else {}
        run.log(metrics=metrics, params=params)
        run.set_status("FINISHED" if complete else "RUNNING")

    def epochs(self, trial: PlannedTrial, epochs: Sequence[EndedEpoch]) -> None:
        """Add epochs to a trial's run, opening it if it is the first."""
        run = self._tree.seed(trial.key, trial.label, trial.seed)
        run.set_status("RUNNING")
        run.log(epochs=epochs)

    def record(self, record: TrialRecord, label: str) -> bool:
        """Show a record whole, under a label: history, metrics, settings, files.

        Returns:
            Whether anything had to be written.
        """
        digest = _record_digest(record, label)
        known = self._tree.find("seed", record.key)
        if known is not None and known.tags.get(DIGEST) == digest:
            return False
        started, ended = map(values.milliseconds, (record.provenance.started, record.provenance.ended))
        run = self._tree.seed(record.key, label, record.seed, started)
        tags = values.record_tags(record)
        params = {"configuration": label, "seed": str(record.seed), **values.flatten(record.settings.plain())}
        epochs = self._history(record.key, started)
        run.log(epochs=epochs, metrics=values.final_metrics(record), params=params, tags=tags)
        if inputs := dataset_inputs(record):
            self._tree.store.client.log_inputs(run.id, inputs)  # leaves out those that the run has already
        run.put_files(self._files(record))
        run.set_status("FAILED" if record.outcome == "failed" else "FINISHED", ended)
        run.set_tag(DIGEST, digest)  # last, so that half a record is written again
        return True

    def report(self) -> None:
        """Put the files of the study's report folder beside its run, if they changed, and the verdict into its
        description, unless somebody has written another one there."""
        files = self._report_files()
        if not files:
            return
        run = self._tree.study()
        run.put_files(files, "cellray.report_digest")
        text = files.get("report/verdict.txt", b"").decode()[: views.LONGEST_TAG]
        there = run.tags.get(NOTE, "")
        is_ours = there in ("", values.cut(self._study.question)) or values.digest([there]) == run.tags.get(VERDICT)
        if text and text != there and is_ours:
            run.set_tag(VERDICT, values.digest([text]))
            run.set_tag(NOTE, text)

    def end(self, *, complete: bool) -> None:
        """Close the study's run, and every run that nobody continues any more."""
        study = self._tree.study()
        for run in [*self._tree.of_kind("seed"), *([] if complete else self._tree.of_kind("configuration"))]:
            if run.status == "RUNNING":
                run.set_status("KILLED")
        study.set_status("FINISHED" if complete else "KILLED")

    def is_shown(self, labels: Iterable[str], records: Mapping[str, TrialRecord], label_of: Mapping[str, str]) -> bool:
        """Whether the store is seen at a glance, without MLflow, to show a whole study that has ended.

        Args:
            labels: Of all configurations.
            records: Of all trials, by key.
            label_of: Key -> what the study calls its configuration now.
        """
        runs = sqlite_runs(self._uri, self._study.name)
        study = runs.get(("study", self._study.name), {})
        if not study or not all(("configuration", label) in runs for label in labels):
            return False
        shown = {
            "status": "FINISHED",
            "cellray.study_digest": files_digest({"study.yaml": self._ledger.read("study.yaml")}),
            "cellray.report_digest": files_digest(self._report_files()),
        }
        return shown.items() <= study.items() and all(
            runs.get(("seed", key), {}).get(DIGEST) == _record_digest(record, label_of.get(key, record.label))
            for key, record in records.items()
        )

    def _report_files(self) -> dict[str, bytes]:
        return {file.path: self._ledger.read(file.path) for file in self._ledger.files("report")}

    def _history(self, key: str, started: int | None) -> list[EndedEpoch]:
        """The stored epochs; each ended after the seconds of all before it."""
        ms = float(self._tree.now() if started is None else started)
        epochs = []
        for row in self._ledger.history(key):
            seconds = row["seconds"]
            ms += 1000 * seconds if seconds == seconds else 0.0
            epochs.append(EndedEpoch(row, int(ms)))
        return epochs

    def _files(self, record: TrialRecord) -> dict[str, bytes]:
        """The record itself, its settings unshortened, and its overlays."""
        names = [overlay.file for overlay in record.overlays]
        stored = self._ledger.read_all(f"trials/{record.key}/{name}" for name in names)
        return {
            "trial.json": self._ledger.read(f"trials/{record.key}/trial.json"),
            "config.json": json.dumps(record.settings.plain(), indent=1, sort_keys=True).encode(),
            **{name: data for name, data in zip(names, stored, strict=True) if data is not None},
        }


def _record_digest(record: TrialRecord, label: str) -> str:
    return values.digest([PROJECTION, label, record.plain()])
