"""What a study is going to do and to cost."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cellray.cli.common import (
    AllowCode,
    Json,
    MaxConcurrent,
    Only,
    Seeds,
    Storage,
    StudyFile,
    choose,
    load,
    open_sets,
    out,
)
from cellray.errors import StudyError
from cellray.times import duration

if TYPE_CHECKING:
    from cellray.forecast import Forecast, Further
    from cellray.forecast.effect import Effect
    from cellray.places import WorkerGroup
    from cellray.record import PlannedTrial
    from cellray.study import Study, Trial
    from cellray.trial import Sets


MOST_RATES_BYTES = 2**20


def plan(
    study_file: StudyFile,
    storage: Storage = "studies",
    seeds: Seeds = None,
    only: Only = None,
    max_concurrent: MaxConcurrent = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Plan for a cluster of so many nodes instead.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="With --nodes.")] = 0,
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="With --nodes; default: as many as trials on its GPUs need.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Plan for the worker groups of cellray's installation there: a context of kubectl."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="With --context.")] = "cellray",
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="MPX_PER_S", help="Megapixels that a trial trains in a second there, or the JSON of `make gpu`."
        ),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time losses here even if that takes long.")] = False,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Show a study's trials, what is done of them, what the rest will cost, and what the study can show.

    Trains no trial: each distinct loss is timed for a few seconds, once on a machine. A study that this machine can't
    run, or only slowly, is planned all the same, without times or by a rate.

    Example: [bold]cellray plan search_spaces/ablation.yaml --nodes 8 --gpus-per-node 4 --rate 40[/bold]
    """
    from cellray.forecast import forecast, further_trials
    from cellray.ledger import Ledger
    from cellray.results import known_trials
    from cellray.trial import read_references

    study = load(study_file, storage, allow_code)
    chosen = choose(study, seeds, only)
    sets = open_sets(study, as_json)
    read_references(study, sets)
    groups = _nodes_described(study, nodes, gpus_per_node, cpus_per_node, context, namespace)
    ledger = Ledger(storage, study.name)
    trials = known_trials(study, ledger.search())
    planned = [p for p in sets.plan(trials, ledger) if chosen is None or (p.label, p.seed) in chosen]
    examples = _examples(study)
    further = further_trials(study, planned, ledger) if study.gives_seeds else None
    n_more = max(most - len(planned), 0) if (most := study.most_trials) is not None else 0
    if further is not None:
        n_more = further.most or 0
    with nullcontext() if as_json else out.status("timing") as shown:

        def progress(done: int, of: int) -> None:
            if shown is not None:
                shown.update(f"timing each loss for a few seconds: {done}/{of}")

        cost = forecast(
            study,
            sets,
            planned,
            ledger,
            groups=groups,
            rate=None if rate is None else _rate(rate, study),
            measure=measure,
            limit=max_concurrent,
            n_more=n_more,
            further=further,
            examples=examples,
            progress=progress,
        )
    if as_json:
        listed = [{"label": p.label, "seed": p.seed, "key": p.key, "done": p.done} for p in planned]
        print(json.dumps({"study": study.name, "trials": listed, **asdict(cost)}))
        return
    out.print(f"[bold]{escape(study.name)}[/bold]: {escape(study.question)}", highlight=False)
    if planned:
        _print_trials(planned, cost)
    _print_study(study, sets, (trials or examples)[0])
    done = sum(p.done for p in planned)
    if further is None:
        more = f", {n_more} of them suggestions to come" if n_more else ""
        out.print(f"[bold]{done + cost.n_todo} trials, {done} done, {cost.n_todo} to do[/bold]{more}", highlight=False)
    else:
        print_further(study, further, len(planned), done)
    if cost.n_todo:
        _print_costs(study, cost, not groups)
    if cost.effect is not None:
        _print_effect(cost.effect)
    for warning in cost.warnings:
        out.print(f"[yellow]Note:[/yellow] {escape(warning)}", highlight=False)


def print_further(study: Study, further: Further, n: int, done: int) -> None:
    """How many trials a study comes to that gives seeds where they decide."""
    assert study.decide is not None
    count = f"from {n} trials up to {study.decide.at_most} of them"
    if further.most is not None:
        count = f"from {n} to {n + further.most} trials"
    if further.most == 0:
        out.print(f"[bold]{n} trials, {done} done, {n - done} to do[/bold]", highlight=False)
        return
    out.print(f"[bold]{count}, {done} done[/bold]", highlight=False)
    if further.lacks_images:
        words = "test images are lacking, not seeds: by the results so far, no number of seeds will decide it"
    elif further.likely is None:
        words = "none, if the first decide; how many are likely can be told once some have ended"
    elif further.likely == further.most:
        words = "probably all of them, if seeds go on like those so far"
    else:
        words = f"about {further.likely}, if seeds go on like those so far"
    out.print(f"further: {words}", highlight=False)


def _rate(given: str, study: Study) -> float:
    """Megapixels a second: a number, or from a file of benchmarks/training.py those of the most similar batches."""
    from cellray.storage import read_plain

    try:
        if not given.endswith(".json"):
            rate = float(given)
        else:
            measured = json.loads(read_plain(given, MOST_RATES_BYTES))["mpx_s"]
            mpx = study.training.batch_size * study.training.crop_px**2

            def unlike(shape: str) -> float:
                batch, side = map(int, shape.split("x"))
                return abs(math.log(batch * side**2 / mpx))

            rate = float(measured[min(measured, key=unlike)])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = getattr(error, "strerror", None) or error
        raise StudyError(f"--rate {given}: expected a number, or a file that `make gpu` wrote ({what})") from None
    if not (rate > 0 and math.isfinite(rate)):
        raise StudyError(f"--rate {given}: expected a number above 0")
    return rate


def _nodes_described(
    study: Study, nodes: int | None, gpus: int, cpus: int | None, context: str | None, namespace: str
) -> list[WorkerGroup]:
    """The nodes to plan for, if the options name any."""
    from cellray.places import WorkerGroup
    from cellray.submission import Namespace

    if context is not None:
        if nodes is not None:
            raise StudyError("give either --nodes or --context")
        return [WorkerGroup.model_validate(group) for group in Namespace(context, namespace).worker_groups()]
    if nodes is None:
        if gpus or cpus is not None:
            raise StudyError("--gpus-per-node and --cpus-per-node describe nodes: give --nodes, too")
        return []
    if cpus is None and not gpus:
        raise StudyError("--nodes: say what each node has, with --gpus-per-node or --cpus-per-node")
    resources = study.resources.settled(gpus > 0)
    share = resources.n_gpus / resources.n_workers
    enough = resources.cpus * (gpus / share if share else 1)
    return [WorkerGroup(name="nodes", nodes=nodes, CPU=enough if cpus is None else cpus, GPU=gpus)]


def _examples(study: Study) -> list[Trial]:
    """Trials of what a search may suggest: each choice of its space once, each range at both ends."""
    from cellray.study import ConfigurationConfig

    if study.search is None:
        return []
    corners = [
        ConfigurationConfig.model_validate({"label": "suggestion", **settings})
        for settings, _ in study.search.parsed_space.corners()
    ]
    return [study.with_configurations([corner]).trials()[0] for corner in corners]


def _print_trials(planned: list[PlannedTrial], cost: Forecast) -> None:
    """One row a configuration: what is done, and what its trials cost."""
    kinds = {label: kind for kind in cost.kinds for label in kind.labels}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("configuration", no_wrap=True)
    # The other columns say more: what a narrow terminal cuts off is the loss.
    room = max(out.width - max(len(p.label) for p in planned) - 40, 12)
    table.add_column("loss", no_wrap=True, overflow="ellipsis", max_width=room)
    for name in ("done", "epoch", "trial", "memory"):
        table.add_column(name, no_wrap=True, justify="right")
    several = len({p.trial.model.describe() for p in planned}) > 1
    for label, trial in {p.label: p.trial for p in planned}.items():
        states = [_state(p) for p in planned if p.label == label]
        kind = kinds.get(label)
        span = kind.span() if kind else None
        network = f", {trial.model.describe()}" if several else ""
        costs = (
            ("", "", "")
            if kind is None
            else ("–", "–", _gib(kind.peak_mb))
            if kind.epoch_s is None or span is None
            else (f"{kind.epoch_s:.2g} s", duration(span.whole), _gib(kind.peak_mb))
        )
        table.add_row(escape(label), escape(trial.loss.describe() + network), _counted(states), *costs)
    out.print(table)


def _print_study(study: Study, sets: Sets, trial: Trial) -> None:
    """What the study compares, and on what."""
    for role in ("compared", "tuned"):
        names = ", ".join(r.parameter for r in study.roles() if r.role == role)
        out.print(f"{role}: {escape(names) or 'nothing'}", highlight=False)
    split = sets.split(trial)
    out.print(
        f"data: {len(split.train)} training, {len(split.val)} validation, {len(split.test)} test images"
        + ("" if study.data.folds is None else f" ({study.data.folds} trainings a trial, to test each image)")
        + "".join(f", {len(d)} {escape(name)}" for name, d in sets.external.items()),
        highlight=False,
    )


SOURCES = {"probe": "a probe", "rate": "the rate given", "none": ""}
"""In words, where times come from."""


def _print_costs(study: Study, cost: Forecast, here: bool) -> None:
    """How long what is to do will take, and what it needs."""
    resources = study.resources
    share = f"{resources.cpus:g} CPU" + (
        f" for each of {resources.n_workers} workers" if resources.n_workers > 1 else ""
    )
    share += f", {cost.gpus:g} GPU" if cost.gpus else ""
    quota = "" if cost.quota_mb is None else f" of {_size(cost.quota_mb)} allowed"
    memory = "of a GPU" if cost.gpus else "of a process, libraries included"
    if all(kind.source in ("rate", "none") for kind in cost.kinds):
        memory += "; counted for 32 bits, not measured"
    at_once = f"{cost.concurrent}, limited by {cost.limited_by}" if cost.concurrent else "none on this machine"
    if cost.n_tries:
        of = "" if cost.tries_s is None else f", {duration(cost.tries_s)} in all"
        tried = f"{cost.n_tries} shorter trainings first choose learning rates{of}"
        out.print(f"rates:   {tried}; more where the lowest or the highest rate is best", highlight=False)
    for name, words in (
        ("time", _time_in_words(study, cost, here)),
        ("at once", f"{at_once}; each has {share}"),
        ("memory", f"{_gib(cost.peak_mb)} a worker ({memory})"),
        ("disk", f"{_size(cost.disk_mb)} more; checkpoints up to {_size(cost.checkpoints_mb)}{quota}"),
    ):
        out.print(f"{name + ':':<9}{escape(words)}", highlight=False)


def _time_in_words(study: Study, cost: Forecast, here: bool) -> str:
    if cost.trial_s is None or cost.cpu_hours is None or cost.gpu_hours is None:
        return f"not measured on this machine: {cost.not_measured}"
    sources = dict.fromkeys(SOURCES.get(kind.source, "its records") for kind in cost.kinds)
    by = " and ".join(sources)
    if "the rate given" not in sources:
        by += " on CPUs" if study.resources.gpus == "auto" and not cost.gpus else ""
        by += "" if here else ", measured on this machine"
    hours = f"{cost.cpu_hours:.2g} CPU hours" + (f", {cost.gpu_hours:.2g} GPU hours" if cost.gpu_hours else "")
    total = "" if cost.total_s is None else f"about {duration(cost.total_s)}; "
    if cost.further is not None and cost.further.most and cost.total_s is not None and cost.least_s is not None:
        total = f"{duration(cost.least_s)} to {duration(cost.total_s)}; "
    return f"{total}{duration(cost.trial_s)} a trial (by {by}); {hours}"


def _print_effect(effect: Effect) -> None:
    from cellray.metrics import METRICS

    seeds = f"{effect.n_seeds} seed{'s' if effect.n_seeds > 1 else ''}"
    out.print(
        f"effect:  {effect.difference:.2g} of {escape(METRICS[effect.metric].title)} can be shown by "
        f"{seeds} and {effect.n_units} test images with 80 % power\n         ({escape(effect.source)})",
        highlight=False,
    )


def _state(planned: PlannedTrial) -> str:
    if planned.done and planned.record:
        return planned.record.outcome
    return "to judge" if planned.record is not None and not planned.is_stopped else "to do"


def _counted(states: list[str]) -> str:
    """`3/5`, and what became of those that didn't finish or need no training."""
    n_done = sum(state not in ("to do", "to judge") for state in states)
    rest = {state: states.count(state) for state in states if state not in ("finished", "to do")}
    return f"{n_done}/{len(states)}" + "".join(f", {n} {escape(state)}" for state, n in rest.items())


def _gib(mb: float) -> str:
    return f"{mb / 1024:.1f} GiB"


def _size(mb: float) -> str:
    """In units of 10^6 or 10^9 bytes, as disks and the quota are measured."""
    megabytes = mb * 2**20 / 1e6
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
