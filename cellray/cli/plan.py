"""What a study is going to do and to cost."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

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
from cellray.cli.show import duration

if TYPE_CHECKING:
    from cellray.forecast import Forecast
    from cellray.forecast.effect import Effect
    from cellray.record import PlannedTrial
    from cellray.study import Study, Trial
    from cellray.trial import Sets


def plan(
    study_file: StudyFile,
    storage: Storage = "studies",
    seeds: Seeds = None,
    only: Only = None,
    max_concurrent: MaxConcurrent = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Show a study's trials, what is done of them, what the rest will cost here, and what the study can show.

    Trains no trial: each distinct loss is timed for a few seconds, once on a machine.
    """
    from cellray.forecast import forecast
    from cellray.ledger import Ledger
    from cellray.results import known_study

    study = load(study_file, storage, allow_code)
    chosen = choose(study, seeds, only)
    sets = open_sets(study, as_json)
    ledger = Ledger(storage, study.name)
    trials = known_study(study, ledger.search()).trials()
    planned = [p for p in sets.plan(trials, ledger) if chosen is None or (p.label, p.seed) in chosen]
    examples = _examples(study)
    n_more = max(study.search.budget * len(study.seeds) - len(planned), 0) if study.search else 0
    with nullcontext() if as_json else out.status("timing") as shown:

        def progress(done: int, of: int) -> None:
            if shown is not None:
                shown.update(f"timing each loss for a few seconds: {done}/{of}")

        cost = forecast(
            study,
            sets,
            planned,
            ledger,
            limit=max_concurrent,
            n_more=n_more,
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
    more = f", {n_more} of them suggestions to come" if n_more else ""
    out.print(f"[bold]{done + cost.n_todo} trials, {done} done, {cost.n_todo} to do[/bold]{more}", highlight=False)
    if cost.n_todo:
        _print_costs(study, cost)
    if cost.effect is not None:
        _print_effect(cost.effect)
    for warning in cost.warnings:
        out.print(f"[yellow]Note:[/yellow] {escape(warning)}", highlight=False)


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
        network = f", {trial.model.describe()}" if several else ""
        costs = (f"{kind.epoch_s:.2g} s", duration(kind.trial_s), _gib(kind.peak_mb)) if kind else ("", "", "")
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
        + "".join(f", {len(d)} {escape(name)}" for name, d in sets.external.items()),
        highlight=False,
    )


def _print_costs(study: Study, cost: Forecast) -> None:
    """How long what is to do will take, and what it needs."""
    resources = study.resources
    sources = dict.fromkeys("a probe" if kind.source == "probe" else "its records" for kind in cost.kinds)
    hours = f"{cost.cpu_hours:.2g} CPU hours" + (f", {cost.gpu_hours:.2g} GPU hours" if cost.gpu_hours else "")
    share = f"{resources.cpus:g} CPU" + (
        f" for each of {resources.n_workers} workers" if resources.n_workers > 1 else ""
    )
    share += f", {resources.gpus:g} GPU" if resources.gpus else ""
    quota = "" if cost.quota_mb is None else f" of {_size(cost.quota_mb)} allowed"
    memory = "of a GPU" if resources.gpus else "of a process, libraries included"
    for name, words in (
        (
            "time",
            f"about {duration(cost.total_s)}; {duration(cost.trial_s)} a trial (by {' and '.join(sources)}); {hours}",
        ),
        ("at once", f"{cost.concurrent}, limited by {cost.limited_by}; each has {share}"),
        ("memory", f"{_gib(cost.peak_mb)} a worker ({memory})"),
        ("disk", f"{_size(cost.disk_mb)} more; checkpoints up to {_size(cost.checkpoints_mb)}{quota}"),
    ):
        out.print(f"{name + ':':<9}{words}", highlight=False)


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
