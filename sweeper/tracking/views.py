"""Builds a saved view of MLflow's runs page for each sweep: its trials, the swept parameters and the front's chart.

MLflow (3.17) stores a saved view as a tag of the experiment, lists it under "Views", and uses its own
defaults for anything the view leaves out. A version that does not know the tag ignores it. No input or output here.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

from sweeper.records import SweepRecord
from sweeper.tracking.projection import milliseconds, ruled_out_by, sweep_id

TAG = "mlflow.sharedViewState."
CARD_HEIGHT = 440  # pixels: a screen of 1000 shows one chart and the top of the next
RUNS_SHOWN = 1000  # more trials than a sweep has, because a chart that leaves out trials misleads
SECTION = "sweeper"


def view_of(tags: Mapping[str, str]) -> str:
    """The key of a sweep's view in the page's address, from the tags of the sweep's run."""
    return f"sweeper{tags.get('sweeper.id', '')}"


def view_tag(record: SweepRecord) -> tuple[str, str]:
    """The name and value of the experiment tag that stores the sweep's view."""
    at = milliseconds(record.started_utc)
    packed = base64.b64encode(zlib.compress(json.dumps(_state(record)).encode())).decode()
    view = {"name": record.sweep, "createdAt": at, "updatedAt": at, "state": f"deflate;{packed}"}
    return TAG + view_of({"sweeper.id": sweep_id(record)}), json.dumps(view)


def _state(record: SweepRecord) -> dict[str, Any]:
    first, *others = metrics = [objective.metric for objective in record.objectives]
    columns = [
        *(f"metrics.`{metric}`" for metric in dict.fromkeys((*metrics, "joules_per_token"))),
        # MLflow puts tags behind all parameters, where no screen shows them; one tag holds the settings instead.
        *(f"tags.`{tag}`" for tag in ("sweeper.pick", "sweeper.state", "sweeper.settings")),
        "tags.`sweeper.power.kind`",
    ]
    scatter: list[dict[str, object]] = [
        {
            "uuid": f"scatter-{other}",
            "type": "SCATTER",
            "xaxis": {"key": other, "type": "METRIC"},
            "yaxis": {"key": first, "type": "METRIC"},
        }
        for other in others
    ]
    parallel: dict[str, object] = {
        "uuid": "parallel",
        "type": "PARALLEL",
        "selectedParams": list(record.space),
        "selectedMetrics": [*others, first],  # the last one gives the lines their colour
        "showAllRuns": False,
    }
    of_a_chart: dict[str, object] = {"runsCountToCompare": RUNS_SHOWN, "deleted": False, "isGenerated": False}
    section = {
        "uuid": SECTION,
        "name": "Front",
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
        "columns": 1,  # side by side, the names of 6 parameters run into each other
        "cardHeight": CARD_HEIGHT,
    }
    # A trial that breaks a constraint is often the fastest, and would stand above the pick.
    unwanted = dict.fromkeys(ruled_out_by(constraint.metric) for constraint in record.constraints)
    return {
        "searchFilter": f"tags.`sweeper.id` = '{sweep_id(record)}' and tags.`sweeper.kind` = 'trial'"
        " and attributes.status = 'FINISHED'"
        + "".join(f" and tags.`sweeper.state` != '{state}'" for state in unwanted),
        "orderByKey": f"metrics.`{first}`",
        "orderByAsc": record.objectives[0].direction == "minimize",
        "selectedColumns": columns,
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": [
            {**chart, **of_a_chart, "metricSectionId": SECTION} for chart in (*scatter, parallel)
        ],
        "compareRunSections": [section],
        "isAccordionReordered": True,
    }
