"""The figures of a search by name: what was tried, what mattered, and where the best weights lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cellray.metrics import METRICS
from cellray.report import figures
from cellray.report.figures import Drawing, draw
from cellray.report.mixtures import Mixtures
from cellray.report.searched import Search, losses_of, parameter_names
from cellray.report.tables import Plan, Record, metric_title


def of_weights(found: list[Mixtures], metric: str) -> Iterator[Drawing | None]:
    """The score over the weights of three loss terms, for each family of losses mixed in enough ways."""
    for family in found:
        names = ", ".join(family.names)
        more = f"; {', '.join(family.varying)} vary too and add to the scatter" if family.varying else ""
        yield draw(
            f"simplex-{'-'.join(family.names)}",
            f"{metric_title(metric)} on the test set over the weights of {names}{more}",
            f"Triangle of the weights of {names} with {len(family.points)} mixtures as dots, the fitted score behind, "
            f"and its best point. {family.sentence()} {family.caveat()}",
            figures.simplex_response,
            family.points,
            family.names,
            title=metric_title(metric),
            higher_is_better=METRICS[metric].higher_is_better,
        )


def of_search(search: Search, records: Mapping[str, Record], plan: Plan) -> Iterator[Drawing | None]:
    """What was tried and what mattered."""
    title = metric_title(search.metrics[0])
    tried = f"{len(search.judged)} configurations with a value, {len(search.in_state('stopped'))} ended early"
    if len(search.metrics) > 1:
        yield draw(
            "search-history",
            "The front: what no other configuration beats in all of " + " and ".join(map(metric_title, search.metrics)),
            f"Validation values of {tried}, one metric against another, with the front joined.",
            figures.pareto,
            search,
        )
    elif search.is_racing:
        yield draw(
            "seeds-given",
            "Seeds given to each configuration",
            f"Bars of the seeds that each of {len(search.configurations)} configurations was given; a cross marks "
            "those that were dropped.",
            figures.seeds_given,
            search,
        )
    else:
        yield draw(
            "search-history",
            f"{title} on validation, in the order of trying",
            f"Validation {title} of each configuration by its number ({tried}), with the best so far as a line.",
            figures.search_history,
            search,
        )
    if search.suggests and search.importance.shares:
        names = parameter_names(search, losses_of(records, plan))
        largest = search.importance.shares[0]
        yield draw(
            "importance",
            f"Importance of the parameters for {title} on validation (fANOVA)",
            f"Bars of the share of the variation of {title} that each parameter explains, with ranges and with what "
            f"random numbers would explain; the largest is {names[largest.name]} with {largest.value:.2f}.",
            figures.importance_bars,
            search.importance.shares,
            names,
        )
