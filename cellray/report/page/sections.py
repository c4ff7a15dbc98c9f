"""Where each figure stands on the page, and how to read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from markupsafe import Markup

from cellray.report.figures import Drawing


@dataclass(frozen=True)
class Place:
    """A figure's place."""

    section: str
    reading: str
    """One or two sentences for a reader who hasn't met such a figure."""
    is_folded: bool = False
    """Whether it is opened only on demand, as a detail."""


PLACES: dict[str, Place] = {
    "ranking": Place(
        "ranking",
        "A dot is one seed, so the width of a cloud is what chance does; the upright bar is their mean, the thin line "
        "its 95 % interval where known. Crosses apart are collapsed or failed trials: they count as the worst value.",
    ),
    "critical-difference": Place(
        "differences",
        "Each configuration hangs at its mean rank over the images; a bar joins those that lie within the critical "
        "difference and can't be told apart. It is a picture of the whole field: the paired tests above decide.",
    ),
    "pair-matrix": Place(
        "differences",
        "Read along a row: by how much that configuration is better (+) or worse (−) than the one in the column, on "
        "the same images and seeds. Bold in a frame: decided by the paired tests; elsewhere it may be chance.",
    ),
    "rank-stability": Place(
        "differences",
        "If the study were repeated with other images and seeds like these, how often would each configuration take "
        "each rank? One large dot is a firm rank; many small ones say that the rank is a matter of chance.",
    ),
    "iou-curves": Place(
        "quality",
        "How the score falls as an outline has to fit more exactly to count as found: at the left a rough hit is "
        "enough, at the right only an almost perfect outline counts. Grey: all other configurations.",
    ),
    "iou-curves-sets": Place(
        "quality", "The same on every set. Where lines cross, the order hangs on how exact an outline has to be."
    ),
    "precision-recall": Place(
        "quality",
        "To the right, fewer cells are missed; upwards, fewer are made up. A mark is one seed at its own operating "
        "point, the thin lines join equal F1, and a cross at the origin stands for collapsed or failed trials.",
    ),
    "counts": Place(
        "quality",
        "A dot is an image (a larger one several): on the line the count is right, below it cells are missing, above "
        "it there are too many.",
    ),
    "bland-altman": Place(
        "quality",
        "How wrong a count is (up: too few found) against how many cells there are. The middle line is the mean error, "
        "and most images lie between the outer two; a fan opening to the right means that crowded images fare worse.",
    ),
    "drop": Place(
        "generalisation",
        "From the open dot (test set) to the filled one (images from other laboratories, stains or microscopes), with "
        "the difference at the right: the shorter the line, the better a configuration carries over.",
    ),
    "transfer": Place(
        "generalisation",
        "The mean score of each configuration on each set; in brackets the change from the test set.",
        is_folded=True,
    ),
    "strata": Place(
        "generalisation",
        "The score split by crowding of the image, and the recall by size of the cell: a weak column shows where a "
        "mean hides trouble. The last column counts what is predicted in an image without cells.",
    ),
    "error-kinds": Place(
        "generalisation",
        "What goes wrong, per true cell: cells missed, neighbours merged into one, one cell split in several, and "
        "spurious ones that are none. Short bars are good; each set has its own scale.",
    ),
    "validation-dice": Place(
        "training",
        "One line a seed. Lines still rising at the end would have gained from a longer training; a cross marks the "
        "epoch at which a trial collapsed.",
    ),
    "training-loss": Place(
        "training",
        "Each loss has its own scale, so only the shape may be compared between panels, never the height.",
        is_folded=True,
    ),
    "range-tests": Place(
        "training",
        "The loss while the learning rate grows: it falls where the network learns and shoots up where the rate is too "
        "high. The dot marks the rate that was used.",
        is_folded=True,
    ),
    "term-scales": Place(
        "training",
        "What each term of a combined loss was multiplied by so that all pull alike; far from 1, the raw terms differ "
        "in strength.",
        is_folded=True,
    ),
    "costs": Place(
        "training",
        "Upwards is better, to the left cheaper; the grey line joins those that no other beats at a lower cost.",
    ),
    "search-history": Place(
        "weights",
        "Each mark is a configuration, the mean over its seeds on validation images. Where the line of the best so far "
        "is flat, further ones found nothing better; of two metrics, the line joins what none beats in both.",
    ),
    "seeds-given": Place(
        "weights",
        "All start with the same few seeds. A cross marks where a configuration was dropped as decided to be worse "
        "than the leader; the longest bars are those between which the race could not decide sooner.",
    ),
    "importance": Place(
        "weights",
        "How much of the variation of the score each parameter explains by itself; weights that sum to 1 share theirs. "
        "The line is the range over resamples of the configurations. A bar is filled if that range lies above the "
        "dashed mark, which is what random numbers would reach: the others may be chance.",
    ),
    "simplex": Place(
        "weights",
        "A corner is one loss term alone, a point inside a mixture of all three. Colour is the score, dashed lines are "
        "its standard error; the star is the best mixture, and small squares are where it may also be.",
    ),
}
"""By a figure's name, or by what stands before `-<set>` in it; in the order in which a section shows them."""


@dataclass(frozen=True)
class PageFigure:
    """A figure as the page shows it."""

    name: str
    title: str
    reading: str
    is_folded: bool
    svg: Markup


def place_of(name: str) -> str:
    """The entry of `PLACES` that a figure's name belongs to; the longest that fits.

    Raises:
        KeyError: If there is none: whoever draws a new figure gives it a place.
    """
    fitting = [key for key in PLACES if name == key or name.startswith(key + "-")]
    if not fitting:
        raise KeyError(f"figure {name!r} has no place on the page; add it to PLACES")
    return max(fitting, key=len)


def arrange(drawings: Mapping[str, Drawing]) -> dict[str, list[PageFigure]]:
    """The figures of each section, in the order of `PLACES`; figures of several sets in the order they came."""
    order = list(PLACES)
    placed = sorted(((place_of(name), drawing) for name, drawing in drawings.items()), key=lambda p: order.index(p[0]))
    sections: dict[str, list[PageFigure]] = {}
    for key, drawing in placed:
        place = PLACES[key]
        figure = PageFigure(drawing.name, drawing.title, place.reading, place.is_folded, Markup(drawing.inline))
        sections.setdefault(place.section, []).append(figure)
    return sections


def named(figures: Iterable[PageFigure]) -> dict[str, PageFigure]:
    """Figures by name."""
    return {figure.name: figure for figure in figures}
