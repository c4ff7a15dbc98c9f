"""One study on Ray Tune: which trials are still to do, what each is given, and news of them to the observers."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from cellray.device import ALLOCATOR_ENV
from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.study import DataConfig, Study, Trial
from cellray.trial import Planned, Row, Sets, record_failure, run_trial

WORKER_DEATHS = 2
"""A trial whose process dies (out of memory, lost node) goes on from its checkpoint so often; then it has failed."""

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Somebody who watches a sweep. News of one sweep come one at a time, in the driver's process."""

    def on_start(self, study: Study, plan: list[Planned]) -> None:
        """The sweep begins; `plan` tells what the ledger has already."""

    def on_epoch(self, trial: Trial, row: Row) -> None:
        """A running trial ended an epoch."""

    def on_end(self, record: dict[str, Any]) -> None:
        """A trial's record is in the ledger."""

    def on_finish(self) -> None:
        """No trial runs any more, because all are done or because the sweep was interrupted."""


def run_sweep(
    study: Study,
    sets: Sets,
    ledger: Ledger,
    *,
    observers: Sequence[Observer] = (),
    max_concurrent: int | None = None,
    retry_failed: bool = False,
) -> list[dict[str, Any]]:
    """Run every trial the ledger doesn't have, and return the records of the whole plan so far.

    Ray must have been started (`connect`), unless nothing is to do. A record is missing from the answer if the sweep was
    interrupted.

    Args:
        study: What to run.
        sets: Its data, opened.
        ledger: Where records are and go.
        observers: Told what happens.
        max_concurrent: At most so many trials at once; None: as many as fit.
        retry_failed: Run trials again whose outcome was `failed`.

    Raises:
        LedgerError: If another sweep holds the ledger.
        StudyError: If no node can hold a trial.
    """
    ledger.prepare()
    with ledger.lease():
        ledger.write("study.yaml", study.dump_yaml().encode())
        plan = sets.plan(study.trials(), ledger)
        if retry_failed:
            for planned in plan:
                if planned.stored is not None and planned.stored["outcome"] == "failed":
                    ledger.delete(f"trials/{planned.key}/trial.json")
            plan = sets.plan(study.trials(), ledger)
        _tell(observers, "on_start", study, plan)
        todo = [planned.trial for planned in plan if not planned.done]
        try:
            if todo:
                _run(todo, study, sets, ledger, observers, max_concurrent or study.resources.max_concurrent)
        finally:
            _tell(observers, "on_finish")
        return [record for planned in plan if (record := ledger.record(planned.key)) is not None]


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Ray for one sweep: a cluster at `address`, or one started here and stopped at the end."""
    # Ray reads these when it starts: no usage statistics, no log files of Tune's own loggers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address=address,
            log_to_driver=False,
            include_dashboard=False if address is None else None,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {**ALLOCATOR_ENV, "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0"}},
        )
    try:
        yield
    finally:
        ray.shutdown()


def check_feasible(study: Study) -> None:
    """Raise `StudyError` unless some node of the running cluster can hold one trial.

    Ray itself would wait for ever for resources that no node has.
    """
    import ray

    need = {"CPU": float(study.resources.cpus), "GPU": float(study.resources.gpus)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0.0) >= amount for name, amount in need.items()) for node in nodes):
        return
    best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in need}
    lacking = [f"{amount:g} {name}s (largest node: {best[name]:g})" for name, amount in need.items() if amount > best[name]]
    what = ", ".join(lacking) or "CPUs and GPUs on one node"
    raise StudyError(f"resources: no node of the cluster can hold one trial: it needs {what}; lower resources in the study")


def _run(
    todo: list[Trial],
    study: Study,
    sets: Sets,
    ledger: Ledger,
    observers: Sequence[Observer],
    max_concurrent: int | None,
) -> None:
    import ray
    from ray import tune

    check_feasible(study)
    cpus, gpus = float(study.resources.cpus), float(study.resources.gpus)

    class News(tune.Callback):
        """Passes what Tune hears from trials on to the observers, and books those that died."""

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
            if "row" in result:
                _tell(observers, "on_epoch", todo[trial.config["index"]], result["row"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            key, _evaluation_key = sets.keys(todo[trial.config["index"]])
            record = ledger.record(key)
            if record is not None:
                _tell(observers, "on_end", record)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            reason = f"the trial's process died {WORKER_DEATHS + 1} times: {_last_line(trial)}"
            _tell(observers, "on_end", record_failure(todo[trial.config["index"]], sets, ledger, reason))

    # Tune insists on a folder for its own state. Nothing is read back from it: resume goes by the ledger.
    local = "://" not in ledger.storage
    scratch = tempfile.mkdtemp(prefix="cellray-tune-") if local else f"{ledger.uri}/tune"
    work = tune.with_parameters(_work, trials=todo, ledger=ledger, gpus=gpus, threads=max(int(cpus), 1))
    tuner = tune.Tuner(
        tune.with_resources(work, {"cpu": cpus, "gpu": gpus}),
        param_space={"index": tune.grid_search(list(range(len(todo))))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=max_concurrent),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=scratch,
            verbose=0,
            callbacks=[News()],
            failure_config=tune.FailureConfig(max_failures=WORKER_DEATHS),
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        tuner.fit()
    finally:
        if local:
            shutil.rmtree(scratch, ignore_errors=True)


def _work(config: dict[str, Any], trials: list[Trial], ledger: Ledger, gpus: float, threads: int) -> None:
    """One trial in a Ray worker. Leaves nothing behind but opened data, for the next trial of the process."""
    from ray import tune

    trial = trials[config["index"]]
    sets = _open_once(trial.data.model_dump_json())
    run_trial(trial, sets, ledger, gpus=gpus, threads=threads, on_epoch=lambda row: tune.report({"row": row}))


@cache
def _open_once(config: str) -> Sets:
    return Sets.open(DataConfig.model_validate_json(config))


def _last_line(trial: Any) -> str:
    """The last line of what Tune knows of a trial's error."""
    try:
        with open(trial.error_file) as stream:
            return stream.read().strip().splitlines()[-1][:300]
    except (OSError, TypeError, IndexError):
        return "no more is known"


def _tell(observers: Sequence[Observer], what: str, *news: Any) -> None:
    """Tell every observer; one that fails must not cost the sweep anything."""
    for observer in observers:
        try:
            getattr(observer, what)(*news)
        except Exception:
            _log.exception("%s.%s failed; the sweep goes on", type(observer).__name__, what)
