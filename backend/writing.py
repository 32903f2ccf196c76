"""Instances of a task's image -> the prediction that Label Studio stores."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from backend.careful import Found
from backend.effort_scores import find_scorer
from backend.errors import TaskError
from backend.jobs import PredictionJob
from integration.label_config import parse_label_config
from integration.output import Output
from integration.regions import build_prediction

log = logging.getLogger(__name__)


def write_prediction(
    job: PredictionJob, found: Found, width: int, height: int, model: Path
) -> dict[str, Any]:
    """The prediction of one task; what had to be given up is said on its regions.

    Args:
        width, height: of the upright image, in px.
        model: checkpoint directory, which may carry a calibrated task score.

    Raises:
        TaskError: it cannot be written.
    """
    try:
        prediction, report = build_prediction(
            found.instances, parse_label_config(job.label_config), width=width, height=height,
            model_version=job.model_version, output=Output(**job.output), seed=f"{job.task.get('id')}:{job.image}",
            scorer=find_scorer(model),
        )  # fmt: skip
    except Exception as error:
        log.exception("turning instances into regions failed")
        raise TaskError(f"The prediction could not be written as regions: {error!r}.") from error
    if changes := report.changes():
        log.info("task %s: %s", job.task.get("id"), changes)
    for region in prediction["result"] if found.note else ():
        # Label Studio keeps this text with the region, so that annotators see it.
        region.setdefault("meta", {}).setdefault("text", []).append(found.note)
    return prediction
