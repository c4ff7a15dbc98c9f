"""What each configuration took: time, memory, epochs, images a second, and the hours of the whole study."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cellray.record import TrialRecord
from cellray.report.findings import Findings
from cellray.report.page.table_cells import PageTable, head, number_cell
from cellray.scores import as_float


def cost_table(found: Findings) -> PageTable | None:
    """Means over the trials of a configuration, and the hours of all of them, in the order of the ranking.

    Returns:
        A table with the study's totals as notes; None if no record holds a time.
    """
    columns = [
        ("Configuration", ""),
        ("Trials", "With a record"),
        ("Training", "Seconds a trial, mean; the range below"),
        ("Evaluation", "Seconds a trial on every set, with the choice of the operating point"),
        ("Images/s", "Crops trained on in a second, mean over epochs and trials"),
        ("Epochs", "Mean; the range below where it varies"),
        ("Peak memory", "MB, the largest of any trial"),
        ("Hours", "Training and evaluation of all its trials together"),
    ]
    body = []
    speeds = found.details.speeds
    for label in map(str, found.ranked.label):
        mine = found.by_label[label]
        training, evaluation = (seconds(mine, what) for what in ("training", "evaluation"))
        epochs = finite(as_float(r.epochs) for r in mine)
        memory = finite(as_float(r.peak_memory_mb) for r in mine)
        speed = finite(each for (name, _), each in speeds.items() if name == label)
        hours = (training.sum() + evaluation.sum()) / 3600
        body.append(
            [
                head(label),
                number_cell(len(mine), str(len(mine))),
                number_cell(mean_or_nan(training), f"{mean_or_nan(training):.0f} s", reach(training)),
                number_cell(mean_or_nan(evaluation), f"{mean_or_nan(evaluation):.0f} s", reach(evaluation)),
                number_cell(mean_or_nan(speed), f"{mean_or_nan(speed):.0f}"),
                number_cell(mean_or_nan(epochs), f"{mean_or_nan(epochs):.0f}", reach(epochs)),
                number_cell(max(memory, default=np.nan), f"{max(memory, default=np.nan):,.0f} MB".replace(",", " ")),
                number_cell(hours, f"{hours:.2f}"),
            ]
        )
    totals = hours_by_device(found.records.values())
    if not totals:
        return None
    text = "; ".join(f"{hours:.1f} h on {device}" for device, hours in totals.items())
    return PageTable(
        columns,
        body,
        [f"All trials together: {text}. Hours add up over trials, whether they ran one by one or side by side."],
    )


def hours_by_device(records: Iterable[TrialRecord]) -> dict[str, float]:
    """Hours of training and evaluation by the device that the records name."""
    totals: dict[str, float] = {}
    for record in records:
        spent = seconds([record], "training").sum() + seconds([record], "evaluation").sum()
        if spent:
            device = record.provenance.device or "an unnamed device"
            totals[device] = totals.get(device, 0.0) + float(spent) / 3600
    return dict(sorted(totals.items()))


def seconds(records: list[TrialRecord], what: str) -> np.ndarray:
    """The known seconds of some records."""
    return finite(as_float(getattr(r.seconds, what)) for r in records)


def finite(values: Iterable[float]) -> np.ndarray:
    """Those that are known."""
    array = np.array(list(values), dtype=float)
    return array[np.isfinite(array)]


def mean_or_nan(values: np.ndarray) -> float:
    """The mean, NaN of nothing."""
    return float(values.mean()) if len(values) else float("nan")


def reach(values: np.ndarray) -> str:
    """`from–to`, or nothing where all are the same when rounded."""
    if not len(values) or round(values.min()) == round(values.max()):
        return ""
    return f"{values.min():.0f}–{values.max():.0f}"
