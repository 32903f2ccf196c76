"""The task score of a model version: its own calibrated one, else today's."""

from __future__ import annotations

import logging
from pathlib import Path

from integration.output import Scorer
from training.effort import EffortError, load_effort

log = logging.getLogger(__name__)


def find_scorer(directory: Path) -> Scorer | None:
    """The scorer of a checkpoint directory; None when it has none, or none that orders better than today's score."""
    try:
        effort = load_effort(directory)
    except EffortError as error:
        # The order of tasks is not worth a prediction.
        log.error("tasks are ordered by the score without calibration: %s", error)
        return None
    return effort.score if effort is not None and effort.is_useful else None
