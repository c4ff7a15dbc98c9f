"""The verdict of a study in sentences, written from the numbers and never stronger than they allow.

The terminal, the page, Markdown and MLflow show the same ones: what to take and what that can cost at most, what may
be the best, what is the same within the margin, what would decide the rest, and what to distrust. What a bound says is
said of the runs that ended; who collapsed how often stands apart.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cellray.metrics import METRICS
from cellray.report.findings import Findings
from cellray.report.inference import MOST_COMPARED
from cellray.report.ranking import Advice, rows_of, select
from cellray.report.search_answer import found_sentence, seeds_sentence, stopped_clause
from cellray.report.text import TOO_FEW, format_interval, format_rate, format_value, interval_cell, metric_title
from cellray.report.words import listing, listing_some, plural
from cellray.results import Results
from cellray.statistics import LEAST_SEEDS, N_KEPT_OF, SEED_LOOKS, rate_interval
from cellray.times import duration


def write_answer(found: Findings) -> list[str]:
    """What the results say (`say`), and which trials count as missing since one of their files is damaged."""
    damaged = found.results.damaged.values()
    return [*say(found), *(f"Damaged, and counted as missing: {words}." for words in damaged)]


def say(found: Findings) -> list[str]:
    """The sentences, about the ranking on the test set at each trial's own operating point.

    Of a search, what it chose on validation images comes first: the ranking may name another one, but that is seen on
    the test images. Of a study of loss weights, where the best ones lie comes last.
    """
    search, metric, ranked = found.search, found.metric, found.ranked
    known = ranked[ranked["rank"].notna()]
    missing = int(ranked.n_missing.sum())
    stopped = stopped_clause(ranked, search)
    drawn = [DEMONSTRATION] if found.plan.is_drawn else []
    if known.empty and stopped and not missing:
        return [*drawn, f"No configuration was trained to its end: {stopped}."]
    if known.empty:
        n_planned = int(ranked.n_planned.sum())
        return [*drawn, f"No trial has a result yet ({missing} of {n_planned} planned trials are missing)."]
    if not known.survivors_n.sum():
        return [*drawn, f"No trial gave a usable result: {trouble(ranked)}."]
    choice, sentences = found.choice, list(drawn)
    if search is not None and search.suggests:
        sentences.append(found_sentence(search, found))
    if choice is None:
        sentences += [lead(found, known, missing), unsaid(known, found.pairs)]
    else:
        score = scored(found, known[known.label == choice.take].iloc[0])
        sentences += [
            f"{'So far, take' if missing else 'Take'} {choice.take}: {score}.",
            bound(choice, metric),
            best_ones(choice),
            alike(choice, found),
            "" if search is not None and search.suggests else passed_over(choice, known, metric),
            meaning(found, choice.take),
        ]
    sentences += references(found, str(known.iloc[0].label) if choice is None else choice.take)
    sentences.append(kept_sentence(known, metric, None if choice is None else choice.take))
    if search is not None and search.gives_seeds:
        sentences.append(seeds_sentence(search))
    sentences.append(caveats(found, known, missing, stopped))
    sentences += [rates(ranked), few_images(found.results)]
    sentences += [family.sentence for family in found.families]
    if search is not None and search.suggests and any(f.validation_fit and not f.varying for f in found.families):
        sentences.append(TRAIN_THE_TOP)
    if len(found.networks) > 1:
        named = [f"{name} ({listing_some(labels)})" for name, labels in found.networks.items()]
        sentences.append(f"Its configurations differ in their networks: {listing(named)}.")
    return [sentence for sentence in sentences if sentence]


FEW_IMAGES = 10
TRAIN_THE_TOP = (
    "The best of many mixtures tried owes much to chance: before settling on it, train the top of the surface by "
    "validation images, too."
)
"""On rare neurons it lost half as much on test images (`benchmarks/mixtures.py`)."""
DEMONSTRATION = (
    "This is a demonstration: its images are drawn, so what follows shows how an answer looks and says nothing of real "
    "cells."
)


def bound(choice: Advice, metric: str) -> str:
    """What the recommended one may lose: on new images first, on this test set second."""
    n, where = len(choice.judged), "on new images" if choice.new_images else "on these test images"
    sure = f"with new trainings and {where} (95 % confidence)"
    if choice.found.is_best:
        return f"It is the better one, {sure}." if n == 2 else f"It is the best of {n}, {sure}."
    loss = f"{format_value(metric, choice.found.loss)} {metric_title(metric)}"
    best_or = "is the best or " if choice.found.may_be_best[choice.found.take] else ""
    text = f"It {best_or}loses at most {loss} to whichever is best, {sure}"
    here = math.nan if choice.here is None else float(choice.here.losses[choice.found.take])
    if math.isfinite(here):
        text += f"; on these very test images, at most {format_value(metric, here)}"
    return f"{text}."


def best_ones(choice: Advice) -> str:
    """What may be the best, where the bound hasn't said it, and of which nothing can be said."""
    possible, judged = choice.may_be_best, choice.judged
    others = [label for label in judged if label not in possible]
    unknown = [label for label in choice.labels if label not in judged]
    silent = f" Of {listing(unknown)} too few runs ended to say anything." if unknown else ""
    if choice.found.is_best:
        return silent.strip()
    if not others:
        return f"Any of the {len(possible)} may be the best.{silent}"
    if len(others) < len(possible):
        which = "another does" if len(others) == 1 else "for each of these, another does"
        return f"Any of the {len(judged)} may be the best but {listing(others)}: {which} at least as well.{silent}"
    who = f"one of {listing(possible)}" if len(possible) > 1 else possible[0]
    return f"The best is {who}; of each of the {len(others)} others, another does at least as well.{silent}"


def alike(choice: Advice, found: Findings) -> str:
    """What is the same within the margin, or else what would make it so."""
    metric, margin = found.metric, found.plan.margin(float(choice.bootstrap.of.mean[choice.found.take]))
    shown = f"{format_value(metric, margin).rstrip('0')} {metric_title(metric)}"
    said = "" if found.plan.within is not None else ", the margin where a study names none"
    if choice.found.loss <= margin:
        good = choice.alike(margin)
        return f"{listing(good)} will all do within {shown} of the best{said}." if len(good) > 1 else ""
    still = choice.ahead(margin)
    text = f"{listing_some(still)} {'keeps' if len(still) == 1 else 'keep'} that bound above {shown}{said}"
    return f"{text}. {closing(choice, found, still, margin)}"


def closing(choice: Advice, found: Findings, still: list[str], margin: float) -> str:
    """What would bring the bound within the margin, and what it costs; or that images are what is lacking."""
    of = choice.bootstrap.of
    view = choice.look_ahead(margin)
    if view is None:
        return f"With {plural(int(of.has[choice.found.take].sum()), 'seed')} it has as many as it can be given."
    if (n := view.n_seeds) is None:
        left, of_images = (format_value(found.metric, value) for value in (view.loss, view.of_images))
        text = f"{SEED_LOOKS[-1]} seeds of each, if they went on like these, would leave {left}"
        if view.lacks_images:
            offer = "" if found.plan.folds else "; `data.folds: 4` would test on the training images too"
            text += f", and any number {of_images}: not seeds but test images are lacking, there are "
            text += f"{plural(of.n_images, found.unit)}{offer}"
        return f"{text}."
    who = list(dict.fromkeys([choice.take, *still]))
    counts = dict(zip(choice.labels, of.has.sum(1), strict=True))
    n_runs = sum(max(n - int(counts[label]), 0) for label in who)
    spent = [record.seconds.total for label in who for record in found.by_label[label]]
    cost = f", about {duration(n_runs * sum(spent) / len(spent))} one after the other" if spent else ""
    them = "these" if choice.take in still else "it and these"
    return f"{n} seeds of {them} would, if they went on like the first ({n_runs} more trainings{cost})."


def passed_over(choice: Advice, known: pd.DataFrame, metric: str) -> str:
    """Why the configuration with the highest mean of the runs that ended isn't the recommended one."""
    of = choice.bootstrap.of
    first = int(np.nanargmax(of.mean))
    if first == choice.found.take:
        return ""
    label = choice.labels[first]
    row = known[known.label == label].iloc[0]
    if row.n_finished < row.n_planned - row.n_missing:
        why = f"not all of its runs ended ({row.n_finished} of {row.n_planned - row.n_missing})"
    elif math.isnan(choice.found.losses[first]):
        why = f"its seeds spread too widely to plan with (SD {format_value(metric, row.survivors_sd)})"
    else:
        why = "it may lose more"
    return f"{label} has the better mean, {format_value(metric, row.survivors_mean)}, but {why}."


def meaning(found: Findings, label: str) -> str:
    """What the score means in cells; empty without the metrics for it."""
    seen = {}
    for key in ("recall_iou", "precision_iou", "mpe"):
        rows = select(found.tables.scores, set_name="test", metric=key)
        values = rows[(rows.label == label) & (rows.outcome == "finished")]["value"]
        if values.empty or not np.isfinite(values).all():
            return ""
        seen[key] = float(values.mean())
    more = "low" if seen["mpe"] > 0 else "high"  # true less predicted
    return (
        f"In cells: of 100 it finds {100 * seen['recall_iou']:.0f}, of 100 that it draws "
        f"{100 * (1 - seen['precision_iou']):.0f} are none, and its counts are {abs(seen['mpe']):.0f} % {more}."
    )


def references(found: Findings, label: str) -> list[str]:
    """How a configuration compares with each of the predictions made elsewhere, a sentence each."""
    if found.tables.references is None:
        return []
    metric, sentences = found.metric, []
    values, against = found.tables.references.of("test", metric), found.tables.references.against
    for one in rows_of(values):
        said = (
            f"{one.label}'s predictions score {metric_title(metric)} {format_value(metric, one.value)} on the test set"
        )
        rows = against[(against.reference == one.label) & (against.configuration == label)]
        if rows.empty:
            sentences.append(f"{said}.")
            continue
        row = rows.iloc[0]
        ahead, low, high = float(row.difference), float(row.low), float(row.high)
        if not math.isfinite(low):
            which, ends = ("ahead" if ahead >= 0 else "behind"), ""
            sure = "with too few runs to say how sure that is"
        else:
            which = "better" if low > 0 else "worse" if high < 0 else "ahead" if ahead >= 0 else "behind"
            low, high = (low, high) if ahead >= 0 else (-high, -low)
            ends = f" {format_interval(metric, low, high)}"
            where = "on new images" if row.n_units > 1 else "on these test images"
            sure = f"with new trainings and {where} (95 % confidence)"
            sure += "" if low > 0 else ", so which is better isn't settled"
        sentences.append(f"{said}; {label} is {which} by {format_value(metric, abs(ahead))}{ends}, {sure}.")
    return sentences


def kept_sentence(known: pd.DataFrame, metric: str, taken: str | None) -> str:
    """What to expect of the best of three trainings by validation, of the best one by that and of the one to take."""
    rows = known[known.kept_low.notna()]
    if rows.empty:
        return ""
    sign = -1 if METRICS[metric].higher_is_better else 1
    best = rows.iloc[int((sign * rows.kept_mean).to_numpy().argmin())]

    def shown(row: pd.Series) -> str:
        interval = format_interval(metric, row.kept_low, row.kept_high)
        return f"{row.label} {format_value(metric, row.kept_mean)}" + (f" {interval}" if interval else "")

    text = f"Of {N_KEPT_OF} trainings, with the best on validation kept, most is to be expected of {shown(best)}"
    mine = rows[rows.label == taken]
    if taken is not None and len(mine) and best.label != taken:
        text += f"; of {shown(mine.iloc[0])}"
    return f"{text}."


def unsaid(known: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Why nothing is promised; empty with one configuration."""
    if len(known) < 2 or pairs.empty:
        return ""
    if len(known) > MOST_COMPARED:
        return f"Of more than {MOST_COMPARED} configurations it isn't said which may be the best."
    if pairs.n_seeds.max() < LEAST_SEEDS:
        common = plural(int(pairs.n_seeds.max()), "common seed")
        return f"With {common} nothing is decided: it takes {LEAST_SEEDS} to see how much is chance."
    return ""


def lead(found: Findings, known: pd.DataFrame, missing: int) -> str:
    """Who leads and by how much, where nothing can be promised."""
    so_far = "So far, " if missing else ""
    metric, pairs, first = found.metric, found.pairs, known.iloc[0]
    score = scored(found, first)
    if len(known) == 1:
        return f"{so_far}{first.label} has {score}; there is nothing to compare it with."
    tied = known[known["rank"] == 1]
    if len(tied) > 1:
        return f"{so_far}{listing(list(tied.label))} share the first place by {score}."
    second = known.iloc[1]
    gap = format_value(metric, abs(first["mean"] - second["mean"]))
    ahead = pairs[(pairs.a == first.label) & (pairs.b == second.label)]
    if ahead.low.notna().any():
        pair = ahead.iloc[0]
        gap = f"{format_value(metric, pair.difference)} {format_interval(metric, pair.low, pair.high)}".strip()
    return f"{so_far}{first.label} leads by {score}; {second.label} follows, {gap} behind."


def scored(found: Findings, row: pd.Series) -> str:
    """A configuration's mean on the test set, and over what."""
    over = plural(int(row.n), "seed")
    if len(found.pairs) and found.pairs.n_images.max() > 1:
        over += f" and {plural(int(found.pairs.n_images.max()), found.unit)}"
    interval = interval_cell(found.metric, row.low, row.high)
    if interval == TOO_FEW:
        over += ", too few seeds to tell how far chance would move it"
    elif interval:
        over += f"; 95 % interval {interval}"
    return f"{found.title} {format_value(found.metric, row['mean'])} on the test set (mean over {over})"


def caveats(found: Findings, known: pd.DataFrame, missing: int, stopped: str) -> str:
    """Collapses, failures, who would lead without them, range tests without a result, missing trials, those ended
    early: one sentence, or none."""
    parts, trials = [], found.tables.trials
    words = trouble(found.ranked)
    if words:
        counted = "each counts as the worst value"
        if found.plan.skip_collapsed:
            counted = "these are left out, as the quirk skip_collapsed has it"
        parts.append(
            f"{words}: in the ranking {counted}, while bounds and what may be best are about the runs that ended"
        )
    favoured = known[(known.survivors_rank == 1) & (known["rank"] > 1)]
    if len(favoured) and words:
        row = favoured.iloc[0]
        mean = format_value(found.metric, row.survivors_mean)
        parts.append(
            f"leaving them out would have put {row.label} first ({mean} over {row.survivors_n} of "
            f"{plural(int(row.n_planned), 'seed')})"
        )
    in_doubt = trials[trials.lr_in_doubt].label.value_counts()
    if len(in_doubt):
        named = listing_some([f"{label} {n}" for label, n in in_doubt.items()])
        parts.append(
            f"the range test of {plural(int(in_doubt.sum()), 'trial')} chose the lowest rate that it tried or ended "
            f"before half were tried ({named}), so that these may be undertrained"
        )
    if missing:
        planned = int(found.ranked.n_planned.sum())
        parts.append(f"the table is provisional, as {missing} of {planned} planned trials are missing")
    if stopped:
        parts.append(stopped)
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def trouble(ranked: pd.DataFrame) -> str:
    """`3 of 60 trials collapsed (Focal 2, Dice 1)`, for collapses, failures and values that aren't numbers."""
    total = int(ranked.n_planned.sum())
    parts: list[str] = []
    for column, verb in (("n_collapsed", "collapsed"), ("n_failed", "failed"), ("n_nan", "gave no number")):
        rows = ranked[ranked[column] > 0].sort_values([column, "label"], ascending=[False, True])
        if rows.empty:
            continue
        named = [f"{row.label} {getattr(row, column)}" for row in rows_of(rows.head(4))]
        if len(rows) > 4:
            named.append(f"{len(rows) - 4} more")
        count = f"{int(rows[column].sum())} of {total} trials" if not parts else str(int(rows[column].sum()))
        parts.append(f"{count} {verb} ({', '.join(named)})")
    return listing(parts)


def rates(ranked: pd.DataFrame) -> str:
    """How often new runs of a configuration that lost some may be lost."""
    lost = ranked.n_collapsed + ranked.n_failed
    rows = ranked.assign(n_lost=lost)[lost > 0].sort_values("n_lost", ascending=False, kind="stable")
    named = []
    for row in rows_of(rows):
        low, high = rate_interval(row.n_lost, row.n_lost + row.n_finished)
        named.append(f"{format_rate(low, high)} of {row.label}")
    return f"Of new runs, {listing_some(named)} would be lost (95 % confidence each)." if named else ""


def few_images(results: Results) -> str:
    """That a handful of images says little of others; empty where there are more."""
    few = 0 < results.n_units < FEW_IMAGES
    return f"The test set has only {plural(results.n_units, results.unit)}: that says little of others." if few else ""
