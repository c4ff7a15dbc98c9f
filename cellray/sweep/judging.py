"""Trained trials that gave up their GPU or their workers, each judged in a process that takes processors alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cellray.errors import StorageError
from cellray.ledger import Ledger
from cellray.study import ResourcesConfig, Trial
from cellray.sweep.tuning import WORKER_DEATHS, last_words
from cellray.sweep.workers import run_alone


class Judging:
    """The trials that are judged now, by tasks of Ray: a process stays for the next one and holds nothing meanwhile.

    Args:
        ledger: Where the predictions are, and records go.
        resources: Of one trial.
    """

    def __init__(self, ledger: Ledger, resources: ResourcesConfig) -> None:
        self._ledger, self._cpus = ledger, float(resources.cpus)
        self._trials: dict[Any, tuple[Trial, tuple[str, str], int]] = {}

    def __len__(self) -> int:
        return len(self._trials)

    def begin(self, trial: Trial, keys: tuple[str, str], attempts: int = 1) -> None:
        """Have a trial judged as soon as there are processors for it."""
        import ray

        judge = ray.remote(_judge).options(num_cpus=self._cpus, max_retries=0)
        task = judge.remote(trial.model_dump_json(), keys, self._ledger, self._cpus)
        self._trials[task] = trial, keys, attempts

    def ended(self, wait_s: float) -> Iterator[tuple[Trial, str | None]]:
        """Those that have ended since the last look, each with why it was given up, if it was.

        Raises:
            StorageError: If the storage gives or takes no files.
        """
        import ray

        if not self._trials:
            return
        for task in ray.wait(list(self._trials), num_returns=len(self._trials), timeout=wait_s)[0]:
            trial, keys, attempts = self._trials.pop(task)
            try:
                ray.get(task)
            except StorageError as error:
                raise getattr(error, "cause", error) from None  # without Ray's traceback
            except Exception as error:
                if attempts <= WORKER_DEATHS:
                    self.begin(trial, keys, attempts + 1)
                else:
                    yield trial, f"given up after {attempts} attempts: {last_words(str(error))}"
            else:
                yield trial, None


def _judge(trial: str, keys: tuple[str, str], ledger: Ledger, cpus: float) -> None:
    run_alone(Trial.model_validate_json(trial), keys, ledger, cpus=cpus)
