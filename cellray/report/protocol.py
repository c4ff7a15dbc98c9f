"""What a report must state so that a reader can judge it: how, on what, with what, and what each number means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cellray.metrics import METRICS
from cellray.record import TrialRecord
from cellray.report.findings import Findings
from cellray.report.ranking import OPERATING_POINT, OUTCOMES, Tables, rows_of
from cellray.report.searched import METHODS, STOPPING, Search
from cellray.report.study_facts import StudyFacts
from cellray.report.text import format_value, metric_title
from cellray.report.words import listing_some
from cellray.results import Plan
from cellray.scores import is_finite
from cellray.study import EvaluationConfig, Role

COUNTING_WORST = (
    "An unbounded counting error (MAE, MedAE, |MPE|) has no worst value of its own. A failed or collapsed trial counts "
    "as the largest error of any trial in that set, at either operating point, or as that of predicting nothing, "
    "whichever is worse."
)


@dataclass(frozen=True)
class Protocol:
    """The protocol box of the page."""

    facts: list[tuple[str, str]]
    """Name and text, in order."""
    budget: tuple[list[str], list[list[str]]]
    """Columns and rows: what each configuration planned, ended and used."""
    metrics: list[tuple[str, str, str]]
    """Title, definition, worst value."""
    points: tuple[list[str], list[list[str]]]
    """Columns and rows: operating points chosen, one row a configuration."""
    roles: list[tuple[str, str, str]] = field(default_factory=list)
    """Role, parameter, value."""
    rules: list[str] = field(default_factory=list)
    """How numbers are made, in sentences."""
    study_yaml: str = ""


def state_protocol(found: Findings, facts: StudyFacts) -> Protocol:
    """Gather what SCIENCE asks a report to state from the records of the planned trials.

    Args:
        found: The study's results.
        facts: What the records don't say.
    """
    stored = [found.records[key] for key in sorted(found.records)]
    evaluation = facts.evaluation or next((r.settings.rules for r in stored if r.settings.evaluation), None)
    return Protocol(
        facts=[*one_liners(stored, found.plan, found.tables), *_networks(found)],
        budget=budget_table(found),
        metrics=metric_definitions(found.tables),
        points=point_table(found),
        roles=[read_role(role) for role in facts.roles],
        rules=[*rules(evaluation, found.plan), *search_rules(found.search), *facts.notes],
        study_yaml=facts.study_yaml,
    )


def one_liners(stored: Sequence[TrialRecord], plan: Plan, tables: Tables) -> Iterable[tuple[str, str]]:
    """Protocol, data, splits, versions, hardware."""
    yield "Study", plan.study
    yield "Protocol", distinct(r.protocol for r in stored)
    more = f"; {tables.n_unplanned} further records in the ledger are not part of this plan, or out of date"
    built = f"built from {tables.n_records} records of {len(plan.trials)} planned trials"
    yield "Records", built + (more if tables.n_unplanned else "")
    data = [r.data for r in stored]
    yield "Training data", f"fingerprint {distinct(d.fingerprint for d in data)}"
    sizes = {(d.n_train, d.n_val, d.n_test) for d in data if d.n_train is not None}
    if sizes:
        folds = {r.settings.data.folds for r in stored} - {None}
        each = f", each image by the one of {distinct(folds)} trainings of its trial that has it as a test image"
        counts = "; ".join(f"{a} train, {b} validation, {c} test" for a, b, c in sorted(sizes))
        yield "Images", counts + (each if folds else "")
    sets: dict[str, set[str]] = {}
    for d in data:
        for name, of_set in d.sets.items():
            size = f"{of_set.n_images} images, cells {show(of_set.diameter_px)} px across"
            sets.setdefault(name, set()).add(f"{size}, fingerprint {of_set.fingerprint}")
    for name in tables.sets:
        if name in sets:
            yield f"External set {name}", "; ".join(sorted(sets[name]))
    splits: dict[str, set[int]] = {}
    for r, d in zip(stored, data, strict=True):
        if d.split_hash:
            splits.setdefault(d.split_hash, set()).add(r.seed)
    by_seed = sorted(splits.items(), key=lambda item: (min(item[1]), item[0]))
    named = [f"{digest} (seed {', '.join(map(str, sorted(seeds)))})" for digest, seeds in by_seed]
    yield "Splits", "; ".join(named) or "none recorded"
    for title, key in (("cellray", "cellray"), ("Code version", "code"), ("PyTorch", "torch"), ("Python", "python"),
                       ("Hardware", "device")):  # fmt: skip
        yield title, distinct(getattr(r.provenance, key) for r in stored)
    compiled = [r.compiled.compiler for r in stored if r.compiled is not None and r.compiled.steps]
    if compiled:
        which = f"training steps of {len(compiled)} of {len(stored)} trials"
        yield "Compiled", f"{which}, by {distinct(compiled)}; this moves last digits only"


def _networks(found: Findings) -> Iterable[tuple[str, str]]:
    """What was trained, and by which configurations where they differ in it."""
    if len(found.networks) == 1:
        yield "Network", next(iter(found.networks))
    elif found.networks:
        yield "Networks", "; ".join(f"{name}: {listing_some(labels)}" for name, labels in found.networks.items())


def distinct(values: Iterable[object]) -> str:
    """Every different value, sorted; says so where nothing is recorded."""
    known = sorted({str(value) for value in values if value not in (None, "")})
    return "; ".join(known) or "not recorded"


def budget_table(found: Findings) -> tuple[list[str], list[list[str]]]:
    """Planned, ended and trained, one row a configuration in the order of the ranking; costs are in another table."""
    columns = ["configuration", "planned", *OUTCOMES, "epochs", "steps", "parameters", "learning rate"]
    is_compared = len(found.networks) > 1
    if is_compared:
        columns.insert(1, "network")
    rows = []
    for row in rows_of(found.ranked):
        mine = found.by_label[row.label]
        rows.append(
            [
                str(row.label),
                *([distinct(r.settings.model.title for r in mine)] if is_compared else []),
                *(str(getattr(row, f"n_{name}")) for name in ("planned", *OUTCOMES)),
                *(span(getattr(r, name) for r in mine) for name in ("epochs", "steps", "n_parameters", "lr")),
            ]
        )
    return columns, rows


def point_table(found: Findings) -> tuple[list[str], list[list[str]]]:
    """Range of each operating-point setting over a configuration's trials, and what the search gained on validation."""
    rows = []
    for row in rows_of(found.ranked):
        mine = found.by_label[row.label]
        points = [r.operating_point for r in mine if r.operating_point]
        if points:
            gain = span(r.operating_point_gain for r in mine)
            rows.append([str(row.label), *(span(getattr(p, name) for p in points) for name in OPERATING_POINT), gain])
    return ["configuration", *(name.replace("_", " ") for name in OPERATING_POINT), "gained by choosing"], rows


def span(values: Iterable[object]) -> str:
    """One value, or the range of several; flags as yes/no."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return "/".join(sorted({"yes" if value else "no" for value in known}, reverse=True))
    numbers = sorted(float(value) for value in known if is_finite(value))
    if not numbers:
        return "–"
    low, high = show(numbers[0]), show(numbers[-1])
    return low if low == high else f"{low} … {high}"


def show(value: object) -> str:
    """A number for people: whole numbers grouped, others with three digits."""
    if not is_finite(value):
        return "–"
    number = float(value)
    if number == round(number) or abs(number) >= 100:
        return f"{round(number):,}".replace(",", " ")  # a thin space
    return f"{number:.3g}"


def metric_definitions(tables: Tables) -> list[tuple[str, str, str]]:
    """Each metric's title, definition, and what a failed or collapsed trial counts as."""
    rows = []
    for key in tables.metrics:
        metric = METRICS[key]
        if metric.worst is not None:
            worst = format_value(key, metric.worst)
        else:
            worst = ", ".join(f"{name} {format_value(key, tables.worst[name, key])}" for name in tables.sets)
        unit = f" [{metric.unit}]" if metric.unit else ""
        text = metric.description + ("; ranked and averaged by its size" if metric.is_signed else "")
        rows.append((metric_title(key) + unit, text, worst))
    return rows


def rules(evaluation: EvaluationConfig | None, plan: Plan) -> Iterable[str]:
    """How the numbers are made, in sentences."""
    by_iou, by_distance = "by IoU", "by distance"
    if evaluation:
        by_iou = f"by IoU above {evaluation.iou_threshold:g}"
        by_distance = f"by centre distance up to {evaluation.max_distance:g} mean cell diameters"
    lost = "A failed or collapsed trial counts as the worst value, and so does a metric that is not a number. "
    if plan.skip_collapsed:
        lost = "Failed and collapsed trials are left out of means and ranks, as the quirk skip_collapsed has it. "
    cells = (
        f"one-to-one{':' if evaluation else ''} {by_iou}, most pairs first and then the highest total IoU; "
        f"{by_distance}, most pairs first and then the lowest total distance"
    )
    if evaluation and evaluation.matching == "many_to_one":
        cells = "many-to-one: each true cell takes its best partner alone, so that one blob can be a hit for several"
    own = "threshold and post-processing chosen for each trial on its validation images alone, then frozen"
    if evaluation and evaluation.operating_point != "validation":
        own = "given by the study, the same for every trial; nothing was chosen"
    yield from (
        f"Ranked by {metric_title(plan.rank_by)} on the test set: the mean over all planned seeds that have a record. "
        f"{lost}A missing trial counts as nothing and makes the table provisional. SDs are over seeds, with n − 1.",
        "The mean of the runs that ended leaves failed and collapsed trials out, as the answer's bounds do; a trial "
        "collapsed if on its validation images the trained model predicts nothing, or everything, at its operating "
        "point, or if its loss became NaN.",
        *([] if plan.skip_collapsed else [COUNTING_WORST]),
        f"Cells are matched {cells}.",
        "F1, precision and recall sum their counts over the images of a set; Dice and mIoU sum pixels; counting errors "
        "are means or medians over images. An image without cells in which none is predicted adds nothing to the sums, "
        "has the value 1 in the means over images, and is a count without error; if that holds for the whole set, the "
        "ratios are 1.",
        f"Own operating point: {own} for test and external sets. Published threshold: the same for every trial.",
    )
    if evaluation and evaluation.counts == "released":
        yield (
            "MAE, MedAE and MPE follow the formula of the reference study's code, |TP by distance - TP by IoU|, in "
            "which no spurious cell counts and predicting nothing is no error."
        )
    if evaluation:
        settings = (
            f"{key.replace('_', ' ')} {span([value]) if isinstance(value, bool) else value}"
            for key, value in evaluation.shared_point
        )
        yield f"Published threshold and post-processing: {', '.join(settings)}."


def search_rules(search: Search | None) -> Iterable[str]:
    """What a search, a race or early stopping changes in that, in sentences."""
    if search is None:
        return
    if search.suggests:
        titles = " and ".join(map(metric_title, search.metrics))
        yield (
            f"Configurations were suggested by {METHODS[search.method]} from {titles} on validation images, mean over "
            "the seeds of each with a collapse as the worst value. The test set ranks them afterwards and chooses "
            "none; its images are fresh to the one that was chosen, its trained networks are the same, and so is the "
            "luck of their seeds."
        )
    if search.gives_seeds:
        yield (
            "Seeds were given where they decide, so configurations have unequal numbers of them by design. Means are "
            "over each one's own seeds, differences of pairs over the seeds that both have; the probability of a wrong "
            "statement is shared out over the looks."
        )
    if search.stopping:
        yield (
            f"Configurations were ended early by {STOPPING[search.stopping]}, all seeds together. They are ranked as "
            "stopped, by epoch and validation Dice, and compared with nothing: budgets are unequal by design."
        )


def read_role(role: Role) -> tuple[str, str, str]:
    """Role, parameter and value as text."""
    value = role.value
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return role.role, role.parameter, text if len(text) <= 300 else text[:299] + "…"
