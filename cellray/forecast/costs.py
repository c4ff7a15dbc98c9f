"""Time, memory and disk of a study's trials, from probes and from the records that it has already."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from cellray.device import describe, pick_device
from cellray.errors import StudyError
from cellray.forecast.child import megapixels
from cellray.forecast.effect import Effect, n_units, smallest_effect
from cellray.forecast.probe import Job, ProbesDone, run_probes, work_of
from cellray.forecast.room import Machine, at_once, memory_trouble, most_in_memory, this_machine
from cellray.ledger import Ledger
from cellray.record import PlannedTrial, TrialRecord
from cellray.scores import as_float
from cellray.search.rates import Rates
from cellray.statistics import LEAST_SEEDS
from cellray.study import Study, Trial
from cellray.trial import Sets, new_network

START_S = 15.0
"""Until the first trial trains: imports, Ray, the first workers, about."""
OVERHEAD_S = 0.3
"""Between two trials of a worker: storing the record, the next one's start, about (benchmarks/sweep.py)."""
REPORT_S, REPORT_TRIAL_S = 6.0, 0.4
"""The report and MLflow's last writes at the end of a sweep, and what each trial adds to them, about."""
RANGE_TEST_SHARE = 0.9
"""Of a range test's steps: it ends where training diverges (mean of the tests in docs/results/rates.md)."""
RECORD_MB = 1.5
"""Tables and overlays of one trial, about."""
BYTES = 4
"""Of a weight, and of each of Adam's two moments."""


@dataclass(frozen=True)
class Costs:
    """What one trial takes, alone in its worker."""

    step_s: float
    epoch_s: float
    """With its share of the validations."""
    training_s: float
    """With the range test and the validations."""
    judging_s: float
    peak_mb: float
    """Most memory of a worker: of the GPU by its tensors, or resident in its process with all libraries. Of the decoded
    images, which processes share and the system can drop, a probe has read only some."""
    source: str
    """`probe`, or the records that the time is the mean of."""

    @property
    def trial_s(self) -> float:
        return self.training_s + self.judging_s


@dataclass(frozen=True)
class Kind(Costs):
    """Trials that cost the same: one loss, network and training."""

    labels: tuple[str, ...]
    loss: str
    """Names of its terms."""
    n_todo: int


@dataclass(frozen=True)
class Forecast:
    """What the trials still to do will cost on this machine, and what the study can show."""

    n_todo: int
    """With trials that aren't known yet."""
    n_tries: int
    """Shorter trainings that choose learning rates before; more where the lowest or the highest rate is best."""
    tries_s: float
    """Of all of them, one after the other."""
    kinds: tuple[Kind, ...]
    concurrent: int
    """Trials at once."""
    limited_by: str
    """What sets that: `CPUs`, `GPUs`, `memory`, `max_concurrent` or `trials`."""
    trial_s: float
    """Of a mean trial; 0 if nothing is to do."""
    total_s: float
    """From the command to the report."""
    cpu_hours: float
    gpu_hours: float
    peak_mb: float
    """Of one worker, the largest kind's."""
    disk_mb: float
    """Of what is still to come: checkpoints and records."""
    checkpoints_mb: float
    """Of the whole sweep, at most."""
    quota_mb: float | None
    effect: Effect | None
    warnings: tuple[str, ...]


def forecast(
    study: Study,
    sets: Sets,
    plan: Sequence[PlannedTrial],
    ledger: Ledger,
    *,
    machine: Machine | None = None,
    limit: int | None = None,
    n_more: int = 0,
    examples: Sequence[Trial] = (),
    progress: ProbesDone = lambda done, of: None,
) -> Forecast:
    """The cost of a study's missing trials on this machine.

    Each distinct loss, network and training is timed by a probe of a few seconds, unless the ledger has records of the
    same kind from such a machine; then their mean counts.

    Args:
        study: The study.
        sets: Its data.
        plan: Its trials and what is done of them.
        ledger: With the records of those.
        machine: What there is for trials; None: this machine.
        limit: `--max-concurrent`, if given.
        n_more: Trials of suggestions that aren't known yet.
        examples: What those may be like: each counts as the mean of these; none: as the mean of the plan's.
        progress: Told how many probes are done, and of how many.

    Raises:
        StudyError: If a probe fails, or if not even one trial fits on the machine's CPUs and GPUs.
        ValueError: If there is neither a plan nor an example.
    """
    machine, resources = machine or this_machine(), study.resources
    todo = [planned for planned in plan if not planned.done]
    n_todo, n_all = len(todo) + n_more, len(plan) + n_more
    known = [planned.trial for planned in plan]
    likely = [_with_all_terms(trial) for trial in examples] or known
    if not likely:
        raise ValueError("neither a plan nor an example of what it may hold")
    n, limited_by = at_once(resources, machine, limit)
    if n < 1:
        raise StudyError(
            f"resources: a trial needs {resources.cpus * resources.n_workers:g} CPUs and {resources.gpus:g} GPUs, and "
            f"this machine has {machine.cpus:g} and {machine.gpus}"
        )
    if 0 < n_todo < n:
        n, limited_by = n_todo, "trials"
    wanted = [planned.trial for planned in todo] + (likely if n_more else [])
    kinds = _kinds(study, sets, wanted, plan, n, progress)
    peak_mb = max((kind.peak_mb for kind in kinds.values()), default=0.0)
    trouble = memory_trouble(n, peak_mb, resources, machine)
    if trouble:
        n, limited_by = max(most_in_memory(peak_mb, resources, machine), 1), "memory"
    times = [_time(kinds[_signature(p.trial)], p) for p in todo]
    times += [mean(kinds[_signature(trial)].trial_s for trial in likely)] * n_more if n_more else []
    tries = _tries(kinds, todo, Rates(study, sets, ledger))
    if n_more and likely[0].training.lr == "tune":
        config = likely[0].training.tune
        n_new = len(config.rates) * config.seeds * math.ceil(n_more / len(study.seeds))
        tries += [config.share * mean(kinds[_signature(trial)].training_s for trial in likely)] * n_new
    busy_s = sum(times) + sum(tries)
    report_s = REPORT_S + REPORT_TRIAL_S * n_all
    checkpoint_mb, running_mb = _checkpoint_mb(likely[0])
    checkpoints_mb = n_all * checkpoint_mb + n * running_mb
    quota_mb = None if resources.checkpoints_gb is None else resources.checkpoints_gb * 1e9 / 2**20
    warnings = [trouble] if trouble else []
    if quota_mb is not None and n_all * checkpoint_mb > quota_mb:
        least = math.ceil(n_all * checkpoint_mb * 2**20 / 1e8) / 10
        warnings.append(
            f"checkpoints: the best weights of every trial are kept, and need more than the quota: set "
            f"resources.checkpoints_gb to {least:g} or more"
        )
    if len(study.seeds) < LEAST_SEEDS:
        warnings.append(f"with fewer than {LEAST_SEEDS} seeds the report decides no pair of configurations")
    return Forecast(
        n_todo=n_todo,
        n_tries=len(tries),
        tries_s=sum(tries),
        kinds=tuple(kinds.values()),
        concurrent=n,
        limited_by=limited_by,
        trial_s=sum(times) / n_todo if n_todo else 0.0,
        total_s=START_S + sum(makespan([t + OVERHEAD_S for t in part], n) for part in (tries, times)) + report_s
        if n_todo
        else 0.0,
        cpu_hours=busy_s * resources.cpus * resources.n_workers / 3600,
        gpu_hours=busy_s * resources.gpus / 3600,
        peak_mb=peak_mb,
        disk_mb=n_todo * (checkpoint_mb + RECORD_MB) + min(n, n_todo) * running_mb,
        checkpoints_mb=checkpoints_mb,
        quota_mb=quota_mb,
        effect=smallest_effect(
            ledger,
            study,
            plan,
            n_seeds=len({planned.seed for planned in plan} or study.seeds),
            n_units=n_units(sets.train, sets.split(likely[0]).test),
        ),
        warnings=tuple(warnings),
    )


def makespan(times: Sequence[float], n_at_once: int) -> float:
    """Seconds until all are done, if each begins in its order as soon as a place is free."""
    ends = [0.0] * max(n_at_once, 1)
    for seconds in times:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _time(kind: Kind, planned: PlannedTrial) -> float:
    """Seconds of a trial to do; one that has its weights is only judged."""
    return kind.judging_s if planned.record is not None and not planned.is_stopped else kind.trial_s


def _tries(kinds: Mapping[str, Kind], todo: Sequence[PlannedTrial], rates: Rates) -> list[float]:
    """Seconds of each training that is still to try a learning rate, as far as is known now."""
    waiting = {p.label: p.trial for p in todo if p.trial.training.lr == "tune"}
    return [
        trial.training.tune.share * kinds[_signature(trial)].training_s
        for trial in waiting.values()
        for _ in rates.now(trial).missing
    ]


def _with_all_terms(trial: Trial) -> Trial:
    """The trial with weight on every term of its loss: an example may stand in a corner, suggestions hardly ever do."""
    terms = tuple(term.model_copy(update={"weight": term.weight or 1.0}) for term in trial.loss.terms)
    return trial.model_copy(update={"loss": trial.loss.model_copy(update={"terms": terms})})


def _kinds(
    study: Study,
    sets: Sets,
    trials: Sequence[Trial],
    plan: Sequence[PlannedTrial],
    n_at_once: int,
    progress: ProbesDone,
) -> dict[str, Kind]:
    """By signature, one entry for each loss, network and training among the trials, in their order."""
    groups: dict[str, Trial] = {}
    for trial in trials:
        groups.setdefault(_signature(trial), trial)
    resources = study.resources
    here = describe(pick_device(resources.gpus), max(int(resources.cpus), 1))
    records = {signature: _comparable(plan, signature, here) for signature in groups}
    # Judging takes the same time whatever the loss: one probe for each network. It comes last, when all is warm.
    unseen = {signature: trial for signature, trial in groups.items() if not records[signature]}
    networks = {_network(trial): trial for trial in unseen.values()}
    jobs = [Job("training", trial) for trial in unseen.values()] + [Job("judging", t) for t in networks.values()]
    answers = run_probes(jobs, sets, resources, n_at_once=n_at_once, progress=progress) if jobs else []
    training = dict(zip(unseen, answers, strict=False))
    judging = dict(zip(networks, answers[len(unseen) :], strict=True))
    kinds = {}
    for signature, trial in groups.items():
        costs = (
            _recorded(trial, sets, records[signature])
            if records[signature]
            else _probed(trial, sets, training[signature], judging[_network(trial)])
        )
        terms = " + ".join(str(term.name) for term in trial.loss.terms if term.weight)
        mine = [p for p in plan if _signature(p.trial) == signature]
        labels = tuple(dict.fromkeys(p.label for p in mine))
        n_todo = sum(not p.done for p in mine)
        kinds[signature] = Kind(**vars(costs), labels=labels, loss=terms or str(trial.loss.name), n_todo=n_todo)
    return kinds


def _signature(trial: Trial) -> str:
    """What trials that cost the same have in common."""
    training = trial.training.model_dump_json(exclude={"lr"})
    return f"{work_of(trial.loss)} {_network(trial)} {training} {trial.training.lr == 'range_test'}"


def _network(trial: Trial) -> str:
    return f"{trial.model.model_dump_json()} {trial.training.precision}"


def _comparable(plan: Sequence[PlannedTrial], signature: str, device: str) -> list[TrialRecord]:
    """Records of trials of one kind that were trained to their end on such a device."""
    return [
        p.record
        for p in plan
        if p.record is not None
        and p.record.outcome == "finished"
        and p.record.provenance.device == device
        and _signature(p.trial) == signature
    ]


def _recorded(trial: Trial, sets: Sets, records: Sequence[TrialRecord]) -> Costs:
    """The costs of a kind from its records."""
    judging_s = mean(as_float(record.seconds.evaluation) for record in records)
    trained_s = [as_float(record.seconds.training) for record in records]
    # The clock knows of the range test and of preparations, the record's own times of earlier attempts.
    training_s = mean(
        max(record.provenance.elapsed_s - as_float(record.seconds.evaluation), seconds)
        for record, seconds in zip(records, trained_s, strict=True)
    )
    epoch_s = mean(trained_s) / mean(as_float(record.epochs) for record in records)
    return Costs(
        step_s=epoch_s / _steps_per_epoch(trial, sets),
        epoch_s=epoch_s,
        training_s=training_s,
        judging_s=judging_s,
        peak_mb=max(as_float(record.peak_memory_mb) for record in records),
        source=f"{len(records)} record{'s' if len(records) > 1 else ''}",
    )


def _probed(trial: Trial, sets: Sets, training: dict[str, float], judging: dict[str, float]) -> Costs:
    """The costs of a kind from its probes: what they timed, times how often a trial does it."""
    settings, split, step_s = trial.training, sets.split(trial), training["step_s"]
    val_mpx = megapixels(sets.train, split.val)
    judged_mpx = megapixels(sets.train, split.test) + sum(megapixels(d, range(len(d))) for d in sets.external.values())
    steps_per_epoch = _steps_per_epoch(trial, sets)
    steps = settings.steps or (settings.epochs or 0) * steps_per_epoch
    validations = math.ceil(steps / steps_per_epoch / settings.validate_every)
    validation_s = settings.batch_norm_batches * training["forward_s"] + val_mpx * training["validation_s"]
    tested = RANGE_TEST_SHARE * settings.range_test.steps if settings.lr == "range_test" else 0.0
    return Costs(
        step_s=step_s,
        epoch_s=steps_per_epoch * step_s + validation_s / settings.validate_every,
        training_s=(steps + tested) * step_s + validations * validation_s,
        judging_s=(val_mpx + judged_mpx) * judging["predict_s"]
        + val_mpx * judging["search_s"]
        + judged_mpx * judging["judge_s"],
        peak_mb=max(training["peak_mb"], judging["peak_mb"]),
        source="probe",
    )


def _steps_per_epoch(trial: Trial, sets: Sets) -> int:
    return math.ceil(len(sets.split(trial).train) / trial.training.batch_size)


def _checkpoint_mb(trial: Trial) -> tuple[float, float]:
    """Size of a trial's best weights, and of what a running one has besides: weights and Adam's two moments."""
    weights = BYTES * sum(p.numel() for p in new_network(trial, "meta").parameters()) / 2**20
    return weights, 3 * weights
