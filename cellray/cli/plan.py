"""What a study is going to do and to cost."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from cellray.cli.common import AllowCode, Json, MaxConcurrent, Only, Seeds, Storage, StudyFile, choose, open_sets, out
from cellray.cli.show import duration


def plan(
    study_file: StudyFile,
    storage: Storage = "studies",
    seeds: Seeds = None,
    only: Only = None,
    max_concurrent: MaxConcurrent = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Show a study's trials, what is done of them, and what the rest will cost. Trains nothing."""
    from cellray.forecast import forecast
    from cellray.ledger import Ledger
    from cellray.study import load_study

    study = load_study(study_file, code="allowed" if allow_code else "forbidden")
    chosen = choose(study, seeds, only)
    sets = open_sets(study, as_json)
    planned = [p for p in sets.plan(study.trials(), Ledger(storage, study.name)) if (p.label, p.seed) in chosen]
    cost = forecast(study, sets, planned, cpus=os.cpu_count() or 1, gpus=_gpus(), limit=max_concurrent)
    if as_json:
        trials = [{"label": p.label, "seed": p.seed, "key": p.key, "done": p.done} for p in planned]
        print(json.dumps({"study": study.name, "trials": trials, **asdict(cost), "total_s": cost.total_s}))
        return
    out.print(f"[bold]{escape(study.name)}[/bold]: {escape(study.question)}", highlight=False)
    table = Table("configuration", "loss", *(f"seed {seed}" for seed in study.seeds), box=None, header_style="bold")
    configurations = {p.label: p.trial for p in planned}
    for label, trial in configurations.items():
        states = {p.seed: _state(p) for p in planned if p.label == label}
        table.add_row(escape(label), escape(trial.loss.describe()), *(states.get(seed, "") for seed in study.seeds))
    out.print(table)
    for role in ("compared", "tuned"):
        names = ", ".join(r.parameter for r in study.roles() if r.role == role)
        out.print(f"{role}: {escape(names) or 'nothing'}", highlight=False)
    split = sets.split(planned[0].trial)
    out.print(
        f"data: {len(split.train)} training, {len(split.val)} validation, {len(split.test)} test images"
        + "".join(f", {len(d)} {escape(name)}" for name, d in sets.external.items()),
        highlight=False,
    )
    resources = f"{study.resources.cpus:g} CPU" + (f", {study.resources.gpus:g} GPU" if study.resources.gpus else "")
    out.print(f"each trial: {resources}; {cost.concurrent} at once on this machine", highlight=False)
    done = len(planned) - cost.n_todo
    out.print(f"{len(planned)} trials, {done} done, {cost.n_todo} to do", highlight=False)
    if cost.n_todo:
        out.print(
            f"about {duration(cost.total_s)} ({cost.trial_s:.0f} s a trial, {cost.source}), "
            f"{cost.disk_mb:.0f} MB of storage",
            highlight=False,
        )


def _state(planned: Any) -> str:
    if planned.done:
        return {"finished": "[green]done[/green]"}.get(planned.stored["outcome"], planned.stored["outcome"])
    return "judge" if planned.stored is not None else "·"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
