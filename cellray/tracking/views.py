"""What MLflow's web page shows of a study at first sight: a saved view of its configurations, and links to it.

The page keeps the views that people save as JSON in tags of the experiment; cellray puts one of its own beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, get_args

from cellray.metrics import METRICS
from cellray.tracking.seed_means import HEADLINE
from cellray.tracking.values import group_of

VIEW = "cellray"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
VIEW_NAME = "Configurations compared"

BEGINNING = "Configurations:"

Mode = Literal["TABLE", "CHARTS"]
MODES: tuple[Mode, ...] = get_args(Mode)

LONGEST_TAG = 5000
"""Characters of a tag of an experiment."""


def saved_view(rank_by: str, sets: Sequence[str], created_ms: int) -> str:
    """The saved view: configuration runs alone, best first, a few columns, parallel coordinates and bars.

    Args:
        rank_by: The study's metric.
        sets: Names of the sets that are scored, `test` first; as many as a tag holds are shown.
        created_ms: When the experiment was made.
    """
    for n_sets in range(len(sets), 0, -1):
        state = json.dumps(_state(rank_by, sets[:n_sets]), separators=(",", ":"))
        view = {"name": VIEW_NAME, "createdAt": created_ms, "updatedAt": created_ms, "state": state}
        text = json.dumps(view, separators=(",", ":"))
        if len(text) <= LONGEST_TAG:
            break
    return text


def note(question: str, experiment: str) -> str:
    """A description in Markdown: links to the configurations compared, and the question.

    Args:
        question: The study's.
        experiment: Its id.
    """
    links = " · ".join(f"[{mode.lower()}]({comparison(experiment, mode)})" for mode in MODES)
    return f"{BEGINNING} {links}\n\n{question}"  # the page folds all but the first line


def comparison(experiment: str, mode: Mode) -> str:
    """Where the page shows the saved view, below the address of a server."""
    kind = "workflowType=machine_learning"  # else the page opens on traces of language models
    return f"#/experiments/{experiment}/runs?{kind}&viewStateShareKey={VIEW}&compareRunsMode={mode.removesuffix('S')}"


def is_note(text: str) -> bool:
    """Whether a description is empty or one of `note`."""
    return not text or text.startswith(BEGINNING)


def _state(rank_by: str, sets: Sequence[str]) -> dict[str, object]:
    first, *others = [f"{group_of(name)}/{rank_by}" for name in sets]
    spread = [f"test/{kind}/{rank_by}" for kind in ("worst", "sd", "survivors_mean")]
    counts = [f"outcome/{name}" for name in ("n_finished", "n_collapsed", "n_failed")]
    headline = [f"test/{key}" for key in HEADLINE if key != rank_by]
    columns = [f"metrics.`{name}`" for name in (first, *spread, *counts, *others, *headline)]
    return {
        "searchFilter": "tags.`cellray.kind` = 'configuration'",
        "orderByKey": columns[0],
        "orderByAsc": not METRICS[rank_by].higher_is_better,
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # else the page sorts its own sections before these
        "compareRunSections": [
            {"uuid": "sets", "name": f"{rank_by}: all sets", "display": True, "columns": 1},
            {"uuid": "spread", "name": f"{rank_by}: test", "display": True, "columns": 2},
        ],
        "compareRunCharts": [
            {
                "type": "PARALLEL",
                "uuid": "parallel",
                "metricSectionId": "sets",
                "selectedParams": ["configuration"],
                "selectedMetrics": [first, *others],
                "showAllRuns": True,
                "displayName": "Parallel coordinates",
            },
            *(
                {"type": "BAR", "uuid": name, "metricSectionId": "spread", "metricKey": name, "displayName": name}
                for name in (first, *spread)
            ),
        ],
    }
