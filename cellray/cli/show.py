"""Results as text on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from cellray.cli.common import out

if TYPE_CHECKING:
    import pandas as pd

    from cellray.data.check import DatasetReport
    from cellray.ledger.files import StudyFiles
    from cellray.record import Number

DROPPABLE = ("published threshold", "worst seed", "runs that ended", "best of 3")
"""Columns that a narrow terminal leaves out, in this order; the report has them all."""


def print_table(columns: list[str], rows: list[list[str]], notes: list[str]) -> None:
    """A ranked table in one line a row, without the columns for which the terminal is too narrow."""
    shown = list(range(len(columns)))

    def width() -> int:
        return sum(max(len(line[k]) for line in [columns, *rows]) + 2 for k in shown)

    left_out = []
    for name in DROPPABLE:
        if width() > out.width and name in columns:
            shown.remove(columns.index(name))
            left_out.append(name)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for k in shown:
        table.add_column(escape(columns[k]), no_wrap=True)
    for row in rows:
        table.add_row(*(escape(row[k]) for k in shown))
    out.print(table)
    if left_out:
        out.print(f"A wider terminal also shows: {', '.join(left_out)}.", highlight=False)
    for note in notes:
        out.print(escape(note), highlight=False)


def print_metrics(by_set: Mapping[str, Mapping[str, Number]]) -> None:
    """Every metric of each set: one row a metric, one column a set."""
    from cellray.metrics import METRICS

    if not by_set:
        return
    table = Table("", *(escape(name) for name in by_set), box=None, header_style="bold")
    for title, key in (("images", "n_images"), ("true cells", "n_true"), ("predicted cells", "n_pred")):
        table.add_row(title, *(f"{scores[key]:.0f}" for scores in by_set.values()))
    for key, metric in METRICS.items():
        unit = f" [{metric.unit}]" if metric.unit else ""
        table.add_row(escape(metric.title + unit), *(f"{scores[key]:.3f}" for scores in by_set.values()))
    out.print(table)
    out.print()


def print_numbers(frame: pd.DataFrame) -> None:
    """A small table of words, counts and shares; a dash where there is no number."""
    table = Table(*(name.replace("_", " ") for name in frame.columns), box=None, header_style="bold", pad_edge=False)
    for row in frame.itertuples(index=False):
        table.add_row(*(_number(value) for value in row))
    out.print(table)
    out.print()


def _number(value: object) -> str:
    if not isinstance(value, float):
        return escape(str(value))
    return "–" if value != value else f"{value:.3f}"


def print_dataset(found: DatasetReport) -> None:
    verdict = "[green]usable[/green]" if found.is_usable else "[bold red]not usable[/bold red]"
    out.print(f"[bold]{escape(found.path)}[/bold]: {verdict}", highlight=False, soft_wrap=True)
    if found.sizes:
        sizes = ", ".join(f"{size} ({n})" for size, n in found.sizes.items())
        splits = ", ".join(f"{name or 'no split'} {n}" for name, n in found.splits.items())
        out.print(f"  {found.n_images} images: {sizes}; {', '.join(found.dtypes)}; {splits}", highlight=False)
    if found.objects_per_image and found.foreground_percent:
        low, mid, high = found.objects_per_image
        mean, median = found.foreground_percent
        out.print(
            f"  {found.n_objects} cells, {low:g} / {mid:g} / {high:g} an image (min / median / max); "
            f"signal {mean:.2f} % of pixels (median {median:.2f} %)",
            highlight=False,
        )
    if found.diameter_px:
        p5, p50, p95 = found.diameter_px
        out.print(f"  cell diameter {p5:.1f} / {p50:.1f} / {p95:.1f} px (p5 / median / p95)", highlight=False)
    if found.study_split:
        train, val, test = found.study_split
        out.print(f"  a study would train on {train}, validate on {val}, test on {test}", highlight=False)
    if found.channel_contrast:
        values = " / ".join(f"{value:.1f}" for value in found.channel_contrast)
        best = found.channel_contrast.index(max(found.channel_contrast)) + 1
        words = f"channel {best} shows the cells best: contrast {values} in channels 1 / 2 / 3"
        out.print(f"  {words}", highlight=False)
    for problem in _once(found.problems):
        out.print(f"  [red]problem:[/red] {escape(problem)}", highlight=False, soft_wrap=True)
    for note in found.notes:
        out.print(f"  note: {escape(note)}", highlight=False, soft_wrap=True)


def verdict(ledger: StudyFiles) -> list[str]:
    """The sentences of the report's answer, as they were written last; none before the first report."""
    if not ledger.exists("report/verdict.txt"):
        return []
    return ledger.read("report/verdict.txt").decode(errors="replace").split("\n\n")


def print_verdict(sentences: list[str]) -> None:
    """The answer in words, the same as on the page and in MLflow."""
    out.print()
    for sentence in sentences:
        out.print(escape(sentence), highlight=False)


def _once(problems: list[str]) -> list[str]:
    """Each problem that several files have in the same words once, with the first file."""
    files: dict[str, list[str]] = {}
    for problem in problems:
        file, _, words = problem.partition(": ")
        files.setdefault(words, []).append(file)
    return [f"{of[0]}{f' and {len(of) - 1} more files' if len(of) > 1 else ''}: {words}" for words, of in files.items()]
