"""Time, memory and disk of a study's trials, from probes and from the records that it has already."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeVar

from cellray.device import describe, pick_device
from cellray.errors import StudyError
from cellray.forecast.course import Span, makespan
from cellray.forecast.effect import Effect, n_units, smallest_effect
from cellray.forecast.further import Further
from cellray.forecast.probe import Job, ProbesDone, run_probes, work_of
from cellray.forecast.room import Machine, at_once, memory_trouble, most_in_memory, this_machine
from cellray.forecast.work import Work, memory_mb, probing_s, times_at, weights_mb
from cellray.ledger import Ledger
from cellray.places import WorkerGroup, lacking, n_beside, n_places, remedy
from cellray.record import PlannedTrial, TrialRecord
from cellray.scores import as_float
from cellray.search.rates import Rates
from cellray.statistics import LEAST_SEEDS
from cellray.study import ResourcesConfig, Study, Trial
from cellray.trial import Sets

_T = TypeVar("_T")

START_S = 15.0
"""Until the first trial trains: imports, Ray, the first workers, about."""
OVERHEAD_S = 0.3
"""Between two trials of a worker: storing the record, the next one's start, about (benchmarks/sweep.py)."""
REPORT_S, REPORT_TRIAL_S = 6.0, 0.4
"""The report and MLflow's last writes at the end of a sweep, and what each trial adds to them, about."""
RECORD_MB = 1.5
"""Tables and overlays of one trial, about."""
LONG_PROBE_S = 20.0
"""What probes on CPUs may take before they have to be asked for."""


@dataclass(frozen=True)
class Costs:
    """What one trial takes, alone in its worker; times are None where nobody measured or gave them."""

    step_s: float | None
    epoch_s: float | None
    """With its share of the validations."""
    training_s: float | None
    """With the range test and the validations."""
    judging_s: float | None
    beside_s: float | None
    """Of `judging_s`: all but the predictions."""
    peak_mb: float
    """Most memory of a worker: of the GPU by its tensors, or resident in its process with all libraries. Of the decoded
    images, which processes share and the system can drop, a probe has read only some."""
    source: str
    """`probe`, the records that the time is the mean of, `rate` if a rate was given, or `none`."""

    def span(self, *, trains: bool = True) -> Span | None:
        """What a trial takes that is trained and judged, or judged alone."""
        if self.training_s is None or self.judging_s is None or self.beside_s is None:
            return None
        return Span(self.judging_s - self.beside_s + (self.training_s if trains else 0.0), self.beside_s)


@dataclass(frozen=True)
class Kind(Costs):
    """Trials that cost the same: one loss, network and training."""

    labels: tuple[str, ...]
    loss: str
    """Names of its terms."""
    n_todo: int


@dataclass(frozen=True)
class Forecast:
    """What the trials still to do will cost, here or on the nodes described, and what the study can show."""

    n_todo: int
    """With trials that aren't known yet."""
    n_tries: int
    """Shorter trainings that choose learning rates before; more where the lowest or the highest rate is best."""
    tries_s: float | None
    """Of all of them, one after the other; None as for its kinds."""
    kinds: tuple[Kind, ...]
    concurrent: int
    """Trials at once; 0 if this machine can't hold one."""
    limited_by: str
    """What sets that: `CPUs`, `GPUs`, `nodes`, `memory`, `max_concurrent` or `trials`."""
    trial_s: float | None
    """Of a mean trial; 0 if nothing is to do; None as for its kinds."""
    total_s: float | None
    """From the command to the report."""
    least_s: float | None
    """The same without trials that aren't known yet."""
    cpu_hours: float | None
    gpu_hours: float | None
    not_measured: str
    """Why there are no times; '' if there are."""
    gpus: float
    """Of a trial."""
    peak_mb: float
    """Of one worker, the largest kind's."""
    disk_mb: float
    """Of what is still to come: checkpoints and records."""
    checkpoints_mb: float
    """Of the whole sweep, at most."""
    quota_mb: float | None
    effect: Effect | None
    further: Further | None
    """Of a study that gives seeds where they decide, what it may give."""
    warnings: tuple[str, ...]


def forecast(
    study: Study,
    sets: Sets,
    plan: Sequence[PlannedTrial],
    ledger: Ledger,
    *,
    machine: Machine | None = None,
    groups: Sequence[WorkerGroup] = (),
    rate: float | None = None,
    measure: bool = False,
    limit: int | None = None,
    n_more: int = 0,
    further: Further | None = None,
    examples: Sequence[Trial] = (),
    progress: ProbesDone = lambda done, of: None,
) -> Forecast:
    """The cost of a study's missing trials, on this machine or on a cluster that is only described.

    Each distinct loss, network and training is timed by a probe of a few seconds, unless the ledger has records of the
    same kind from such a machine; then their mean counts. Where this machine can't do what a trial does, or would take
    long to try it, nothing is timed; all else is counted.

    Args:
        study: The study.
        sets: Its data.
        plan: Its trials and what is done of them.
        ledger: With the records of those.
        machine: What is here for trials; None: this machine.
        groups: Nodes of a cluster to plan for; none: this machine.
        rate: Megapixels that a trial trains in a second: times follow from it, and nothing is timed.
        measure: Time on CPUs even if it takes long.
        limit: `--max-concurrent`, if given.
        n_more: Trials that aren't known yet, at most.
        further: What is known of these (`further_trials`).
        examples: What those may be like: each counts as the mean of these; none: as the mean of the plan's.
        progress: Told how many probes are done, and of how many.

    Raises:
        StudyError: If a probe fails, or if not even one trial fits on the nodes described.
        ValueError: If there is neither a plan nor an example.
    """
    machine = machine or this_machine()
    has_gpus = any(group.GPU for group in groups) if groups else machine.gpus > 0
    resources = study.resources.settled(has_gpus)
    todo = [planned for planned in plan if not planned.done]
    n_todo, n_all = len(todo) + n_more, len(plan) + n_more
    known = [planned.trial for planned in plan]
    likely = [_with_all_terms(trial) for trial in examples] or known
    if not likely:
        raise ValueError("neither a plan nor an example of what it may hold")
    n, limited_by = at_once(resources, machine, limit)
    fits_here = n > 0
    warnings = []
    if groups:
        n, limited_by = _at_once_on(groups, resources, limit)
    elif not fits_here:
        warnings.append(
            f"this machine can't run the study: a trial needs {resources.cpus * resources.n_workers:g} CPUs and "
            f"{resources.n_gpus:g} GPUs, and it has {machine.cpus:g} and {machine.gpus}"
        )
    if 0 < n_todo < n:
        n, limited_by = n_todo, "trials"
    wanted = [planned.trial for planned in todo] + (likely if n_more else [])
    by_signature: dict[str, Trial] = {}
    for trial in wanted:
        by_signature.setdefault(_signature(trial), trial)
    not_measured = "" if rate else _why_not(by_signature.values(), sets, plan, resources, fits_here, measure)
    kinds = _kinds(by_signature, sets, plan, resources, max(n, 1), rate, bool(not_measured), progress)
    peak_mb = max((kind.peak_mb for kind in kinds.values()), default=0.0)
    trouble = memory_trouble(n, peak_mb, resources, machine) if fits_here and not groups else None
    if trouble:
        warnings.append(trouble)
        n, limited_by = max(most_in_memory(peak_mb, resources, machine), 1), "memory"
    spans = _spans(kinds, todo, likely, n_more)
    tries = _tries(kinds, todo, Rates(study, sets, ledger))
    if n_more and study.search is not None and likely[0].training.lr == "tune":
        config = likely[0].training.tune
        n_new = len(config.rates) * config.seeds * math.ceil(n_more / len(study.seeds))
        tries += [_shortened(config.share, _mean([kinds[_signature(trial)].training_s for trial in likely]))] * n_new
    tries_s = _known(tries)
    beside = n_beside(resources, _nodes(groups) if groups else [machine.node], n)
    if (most := limit or resources.max_concurrent) is not None:
        beside = min(beside, most - n)
    report_s = REPORT_S + REPORT_TRIAL_S * n_all
    running_mb = 3 * weights_mb(likely[0])  # weights and Adam's two moments
    kept = len(likely[0].trainings) + (study.data.folds is not None)  # of several trainings one is kept twice
    checkpoint_mb = kept * weights_mb(likely[0])
    checkpoints_mb = n_all * checkpoint_mb + n * running_mb
    quota_mb = None if resources.checkpoints_gb is None else resources.checkpoints_gb * 1e9 / 2**20
    if quota_mb is not None and n_all * checkpoint_mb > quota_mb:
        least = math.ceil(n_all * checkpoint_mb * 2**20 / 1e8) / 10
        warnings.append(
            f"checkpoints: the best weights of every trial are kept, and need more than the quota: set "
            f"resources.checkpoints_gb to {least:g} or more"
        )
    if len(study.seeds) < LEAST_SEEDS:
        warnings.append(f"with fewer than {LEAST_SEEDS} seeds the report decides no pair of configurations")
    total_s = least_s = busy = None
    if spans is not None and tries_s is not None:
        busy = Span(sum(tries_s) + sum(span.held for span in spans), sum(span.beside for span in spans))
    if spans is not None and tries_s is not None and n:
        tried_s = makespan([Span(t) for t in tries_s], n, between_s=OVERHEAD_S)
        total_s, least_s = (
            START_S + tried_s + makespan(spans[:count], n, beside, OVERHEAD_S) + report_s if count else 0.0
            for count in (n_todo, len(todo))
        )
    return Forecast(
        n_todo=n_todo,
        n_tries=len(tries),
        tries_s=None if tries_s is None else sum(tries_s),
        kinds=tuple(kinds.values()),
        concurrent=n,
        limited_by=limited_by,
        trial_s=None if spans is None else sum(span.whole for span in spans) / n_todo if n_todo else 0.0,
        total_s=total_s,
        least_s=least_s,
        cpu_hours=None if busy is None else _cpu_s(busy, resources, beside) / 3600,
        gpu_hours=None if busy is None else (busy.held if beside else busy.whole) * resources.n_gpus / 3600,
        not_measured=not_measured,
        gpus=resources.n_gpus,
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
        further=further,
        warnings=tuple(warnings),
    )


def _nodes(groups: Sequence[WorkerGroup]) -> list[dict[str, float]]:
    return [group.node for group in groups for _ in range(group.nodes)]


def _at_once_on(groups: Sequence[WorkerGroup], resources: ResourcesConfig, limit: int | None) -> tuple[int, str]:
    """Trials at once on the nodes of a cluster, and what sets the number."""
    nodes = _nodes(groups)
    n = n_places(resources, nodes) // resources.n_workers
    if n < 1:
        words = ", ".join(map(str, groups))
        raise StudyError(f"resources: {words}: no trial fits: {lacking(resources, nodes)}; {remedy(resources, nodes)}")
    most = limit or resources.max_concurrent
    return (most, "max_concurrent") if most is not None and most < n else (n, "nodes")


def _why_not(
    trials: Iterable[Trial],
    sets: Sets,
    plan: Sequence[PlannedTrial],
    resources: ResourcesConfig,
    fits_here: bool,
    measure: bool,
) -> str:
    """Why nothing is timed on this machine; '' if it is."""
    give = "with --rate (Mpx that a trial trains in a second there) times are worked out"
    if not fits_here:
        return f"it can't hold a trial; {give}"
    if resources.n_gpus or measure:
        return ""
    here = _device(resources)
    unseen = [trial for trial in trials if not _comparable(plan, _signature(trial), here)]
    seconds = sum(probing_s(trial, Work.of(trial, sets)) for trial in unseen)
    if seconds <= LONG_PROBE_S:
        return ""
    minutes = math.ceil(seconds / 60)
    return f"timing takes up to {minutes} min on its CPUs (--measure does it); {give}"


def _spans(
    kinds: Mapping[str, Kind], todo: Sequence[PlannedTrial], likely: Sequence[Trial], n_more: int
) -> list[Span] | None:
    """Of each trial to do; None if a kind has no times."""
    spans = [_span(kinds[_signature(planned.trial)], planned) for planned in todo]
    if n_more:
        of_likely = _known([kinds[_signature(trial)].span() for trial in likely])
        held, beside = zip(*of_likely, strict=True) if of_likely else ((), ())
        spans += [Span(mean(held), mean(beside)) if of_likely else None] * n_more
    return _known(spans)


def _known(times: Sequence[_T | None]) -> list[_T] | None:
    """The times, if all of them are known."""
    found = [time for time in times if time is not None]
    return found if len(found) == len(times) else None


def _mean(times: Sequence[float | None]) -> float | None:
    known = _known(times)
    return None if known is None else mean(known)


def _span(kind: Kind, planned: PlannedTrial) -> Span | None:
    """Of a trial to do; one that has its weights is only judged."""
    return kind.span(trains=planned.record is None or planned.is_stopped)


def _tries(kinds: Mapping[str, Kind], todo: Sequence[PlannedTrial], rates: Rates) -> list[float | None]:
    """Seconds of each training that is still to try a learning rate, as far as is known; None where not measured."""
    waiting = {p.label: p.trial for p in todo if p.trial.training.lr == "tune"}
    return [
        _shortened(trial.training.tune.share, kinds[_signature(trial)].training_s)
        for trial in waiting.values()
        for _ in rates.now(trial).missing
    ]


def _shortened(share: float, seconds: float | None) -> float | None:
    return None if seconds is None else share * seconds


def _with_all_terms(trial: Trial) -> Trial:
    """The trial with weight on every term of its loss: an example may stand in a corner, suggestions hardly ever do."""
    terms = tuple(term.model_copy(update={"weight": term.weight or 1.0}) for term in trial.loss.terms)
    return trial.model_copy(update={"loss": trial.loss.model_copy(update={"terms": terms})})


def _kinds(
    groups: Mapping[str, Trial],
    sets: Sets,
    plan: Sequence[PlannedTrial],
    resources: ResourcesConfig,
    n_at_once: int,
    rate: float | None,
    without_times: bool,
    progress: ProbesDone,
) -> dict[str, Kind]:
    """By signature, one entry for each loss, network and training among the trials, in their order."""
    here = "" if rate or without_times else _device(resources)
    records = {signature: _comparable(plan, signature, here) for signature in groups}
    # Judging takes the same time whatever the loss: one probe for each network. It comes last, when all is warm.
    unseen = {signature: trial for signature, trial in groups.items() if here and not records[signature]}
    networks = {_network(trial): trial for trial in unseen.values()}
    jobs = [Job("training", trial) for trial in unseen.values()] + [Job("judging", t) for t in networks.values()]
    answers = run_probes(jobs, sets, resources, n_at_once=n_at_once, progress=progress) if jobs else []
    training = dict(zip(unseen, answers, strict=False))
    judging = dict(zip(networks, answers[len(unseen) :], strict=True))
    kinds = {}
    for signature, trial in groups.items():
        if not here:
            costs = _unseen(trial, sets, resources, rate)
        elif records[signature]:
            costs = _recorded(trial, sets, records[signature])
        else:
            peak_mb = max(training[signature]["peak_mb"], judging[_network(trial)]["peak_mb"])
            costs = _added(Work.of(trial, sets), training[signature], judging[_network(trial)], peak_mb, "probe")
        terms = " + ".join(str(term.name) for term in trial.loss.terms if term.weight)
        mine = [p for p in plan if _signature(p.trial) == signature]
        labels = tuple(dict.fromkeys(p.label for p in mine))
        n_todo = sum(not p.done for p in mine)
        kinds[signature] = Kind(**vars(costs), labels=labels, loss=terms or str(trial.loss.name), n_todo=n_todo)
    return kinds


def _device(resources: ResourcesConfig) -> str:
    """What records of a trial on this machine call its device."""
    return describe(pick_device(resources.n_gpus), max(int(resources.cpus), 1))


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
        max(
            record.provenance.elapsed_s - (record.seconds.waiting or 0.0) - as_float(record.seconds.evaluation), seconds
        )
        for record, seconds in zip(records, trained_s, strict=True)
    )
    epoch_s = mean(trained_s) / mean(as_float(record.epochs) for record in records)
    return Costs(
        step_s=epoch_s / Work.of(trial, sets).steps_per_epoch,
        epoch_s=epoch_s,
        training_s=training_s,
        judging_s=judging_s,
        beside_s=judging_s,
        peak_mb=max(as_float(record.peak_memory_mb) for record in records),
        source=f"{len(records)} record{'s' if len(records) > 1 else ''}",
    )


def _unseen(trial: Trial, sets: Sets, resources: ResourcesConfig, rate: float | None) -> Costs:
    """The costs of a kind by what it does alone: with times where a rate is given."""
    peak_mb = memory_mb(trial, resources.n_workers, resources.n_gpus > 0)
    if rate is None:
        return Costs(None, None, None, None, None, peak_mb, "none")
    work = Work.of(trial, sets)
    return _added(work, *times_at(work, rate), peak_mb, "rate")


def _cpu_s(busy: Span, resources: ResourcesConfig, beside: int) -> float:
    """Seconds that all processors together are held."""
    return resources.cpus * (resources.n_workers * busy.held + (1 if beside else resources.n_workers) * busy.beside)


def _added(work: Work, training: dict[str, float], judging: dict[str, float], peak_mb: float, source: str) -> Costs:
    """The costs of a kind: what was timed, times how often a trial does it."""
    step_s = training["step_s"]
    predicted_s = (work.trainings * work.val_mpx + work.judged_mpx) * judging["predict_s"]
    beside_s = work.trainings * work.val_mpx * judging["search_s"] + work.judged_mpx * judging["judge_s"]
    validation_s = work.batch_norm_batches * training["forward_s"] + work.val_mpx * training["validation_s"]
    return Costs(
        step_s=step_s,
        epoch_s=work.steps_per_epoch * step_s + validation_s / work.validate_every,
        training_s=(work.steps + work.tested) * step_s + work.validations * validation_s,
        judging_s=predicted_s + beside_s,
        beside_s=beside_s,
        peak_mb=peak_mb,
        source=source,
    )
