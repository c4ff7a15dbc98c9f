"""The overlays of a report: one trial a configuration, shrunk until all of them fit into the page."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

from cellray.ledger import Ledger
from cellray.metrics import METRICS
from cellray.record import OverlayFile, TrialRecord
from cellray.report.findings import Findings
from cellray.report.ranking import select

ROLES = ("worst", "median", "best")
LEGEND = {"hit": "found", "missed": "missed (true outline)", "spurious": "spurious (predicted outline)"}
BUDGET_BYTES = 4_500_000
"""Of all embedded images together, before base64 adds a third: leaves the page below 10 MB."""
LIVE_BYTES = 60_000
"""Of a picture of a page that is written again and again."""
LARGEST_PX, SMALLEST_PX = 640, 120
MOST_CONFIGURATIONS = 24
"""The best-ranked so many are shown; more would leave too few bytes for each picture to be worth looking at."""


@dataclass(frozen=True)
class Picture:
    """One overlay, ready to be embedded."""

    label: str
    seed: int
    set: str
    role: str
    image: str
    caption: str
    alt: str
    src: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Overlays by where the page shows them."""

    by_configuration: dict[str, dict[str, Picture]] = field(default_factory=dict)
    """Label -> role -> picture, of test images: the recommended one, then the others in the order of the ranking."""
    crowded: dict[str, list[Picture]] = field(default_factory=dict)
    """Set -> the same image for every configuration, in the same order."""
    leader: str = ""
    """The first of these that has overlays."""
    leader_abroad: dict[str, dict[str, Picture]] = field(default_factory=dict)
    """External set -> role -> the leader's picture."""
    left_out: str = ""
    """Says how many configurations aren't shown; empty if all are."""
    missing: list[str] = field(default_factory=list)
    """Sentences about overlays that a record names and the ledger lacks, or has damaged."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no picture and nothing to say of one."""
        return not (self.by_configuration or self.crowded or self.leader_abroad or self.missing)


def make_gallery(found: Findings) -> Gallery:
    """Choose and shrink the overlays of each configuration's median trial.

    Worst, median and best image come from the test set and, for the leader, from external sets too; the most crowded
    image, the same for all, comes from every set but `val`.
    """
    ledger, chosen = found.results.ledger, median_trials(found)
    order = dict.fromkeys([*([found.choice.take] if found.choice else []), *found.everyone])
    with_overlays = {label: chosen[label] for label in order if label in chosen}
    shown = dict(list(with_overlays.items())[:MOST_CONFIGURATIONS])
    leader = next(iter(shown), "")
    judged = ["test", *found.external]
    wanted = [
        (label, record, overlay)
        for label, record in shown.items()
        for overlay in record.overlays
        if overlay.set in judged and (overlay.role == "crowded" or overlay.set == "test" or label == leader)
    ]
    limit = BUDGET_BYTES // max(len(wanted), 1)
    mine: dict[str, dict[str, Picture]] = {}
    crowded: dict[str, list[Picture]] = {name: [] for name in judged}
    abroad: dict[str, dict[str, Picture]] = {name: {} for name in judged if name != "test"}
    missing = []
    pngs = ledger.read_all(f"trials/{record.key}/{overlay.file}" for _, record, overlay in wanted)
    for (label, record, overlay), png in zip(wanted, pngs, strict=True):
        if png is None:
            missing.append(f"{label}: {overlay.file} is not in the ledger")
            continue
        try:
            picture = make_picture(label, record.seed, overlay, png, limit)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's for what is no picture
            missing.append(f"{label}: {overlay.file} is damaged and left out")
            continue
        if picture.role == "crowded":
            crowded[picture.set].append(picture)
        elif picture.role in ROLES and picture.set == "test":
            mine.setdefault(label, {})[picture.role] = picture
        elif picture.role in ROLES:
            abroad[picture.set][picture.role] = picture
    n_hidden = len(with_overlays) - len(shown)
    return Gallery(
        by_configuration=mine,
        crowded={name: pictures for name, pictures in crowded.items() if pictures},
        leader=leader,
        leader_abroad={name: pictures for name, pictures in abroad.items() if pictures},
        left_out=f"The {len(shown)} best-ranked configurations are shown; the pictures of the other {n_hidden} lie in "
        "the ledger, in the folder overlays of each trial."
        if n_hidden
        else "",
        missing=missing,
    )


def pictures_of(ledger: Ledger, record: TrialRecord) -> list[Picture]:
    """Worst, median and best test image of one trial, as far as the ledger has them."""
    found = {overlay.role: overlay for overlay in record.overlays if overlay.set == "test"}
    pictures = []
    for overlay in (found[role] for role in ROLES if role in found):
        with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # missing, or no picture
            png = ledger.read(f"trials/{record.key}/{overlay.file}")
            pictures.append(make_picture(record.label, record.seed, overlay, png, LIVE_BYTES))
    return pictures


def median_trials(found: Findings) -> dict[str, TrialRecord]:
    """By label, the trial with overlays whose score is the (lower) median of its configuration; ties go by seed."""
    rows = select(found.tables.scores, set_name="test", metric=found.metric)
    rows = rows[rows.key.map(lambda key: key in found.records and bool(found.records[key].overlays))]
    better = METRICS[found.metric].higher_is_better
    rows = rows.sort_values(["counted", "seed"], ascending=[better, True], kind="stable")
    by_label = rows.groupby("label", sort=False).key
    return {str(label): found.records[keys.iloc[(len(keys) - 1) // 2]] for label, keys in by_label}


def make_picture(label: str, seed: int, overlay: OverlayFile, png: bytes, limit: int) -> Picture:
    """Shrink one overlay below `limit` bytes as WebP and describe it."""
    data, width, height = shrink(png, limit)
    f1 = overlay.f1_iou
    score = f"F1 {f1:.2f}, " if isinstance(f1, float) and f1 == f1 else ""
    counts = f"{score}{overlay.n_true} cells, {overlay.n_pred} predicted"
    return Picture(
        label=label,
        seed=seed,
        set=overlay.set,
        role=overlay.role,
        image=overlay.image,
        caption=counts,
        alt=f"{label}, seed {seed}: {overlay.role} image of {overlay.set} ({overlay.image}), {counts}",
        src="data:image/webp;base64," + base64.b64encode(data).decode(),
        width=width,
        height=height,
    )


def shrink(png: bytes, limit: int) -> tuple[bytes, int, int]:
    """WebP of at most `limit` bytes, as large as that allows; bytes, width, height."""
    original = Image.open(io.BytesIO(png)).convert("RGB")
    scale = min(1.0, LARGEST_PX / max(original.size))
    while True:  # ends: the scale falls each time
        size = (max(1, round(original.width * scale)), max(1, round(original.height * scale)))
        image = original if size == original.size else original.resize(size, Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, format="WEBP", quality=72, method=2)
        data = stream.getvalue()
        if len(data) <= limit or max(size) <= SMALLEST_PX:
            return data, *size
        scale *= min(0.9, 0.97 * (limit / len(data)) ** 0.5)  # bytes go with the area
