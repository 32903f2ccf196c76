"""The task score of a model version: its own calibrated one, else today's.

Instances of a task's image -> the prediction that Label Studio stores.
"""

from __future__ import annotations

import logging
from pathlib import Path

from backend.errors import TaskError
from backend.queue.job_queue import PredictionJob
from backend.worker.oom_fallback import PredictedImage
from integration.label_studio.label_config import parse_label_config
from integration.label_studio.prompts import PromptFields
from integration.label_studio.tasks import Prediction
from integration.regions.prompts import build_answer
from integration.regions.settings import Output, Scorer
from integration.regions.write import build_prediction
from training.snapshots.annotation_cost import EffortError, load_effort

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


def prediction_of_instances(
    job: PredictionJob, predicted: PredictedImage, width: int, height: int, model: Path
) -> Prediction:
    """The prediction of one task; what had to be given up is said on its regions.

    Args:
        width, height: of the upright image, in px.
        model: checkpoint directory, which may carry a calibrated task score.

    Raises:
        TaskError: it cannot be written.
    """
    try:
        prediction, report = build_prediction(
            predicted.instances,
            parse_label_config(job.label_config),
            width=width,
            height=height,
            model_version=job.model_version,
            output=Output(**job.output),
            seed=f"{job.task.get('id')}:{job.image}",
            scorer=find_scorer(model),
        )
    except Exception as error:
        log.exception("turning instances into regions failed")
        raise TaskError(f"The prediction could not be written as regions: {error!r}.") from error
    if changes := report.changes():
        log.info("task %s: %s", job.task.get("id"), changes)
    for region in prediction["result"] if predicted.note else ():
        # Label Studio keeps this text with the region, so that annotators see it; one sentence is enough.
        region["meta"] = {"text": [predicted.note]}
    return {**prediction, "precision": predicted.precision}


def prediction_of_prompt(job: PredictionJob, predicted: PredictedImage, width: int, height: int) -> Prediction:
    """The answer to an interactive job: one object with the annotator's label, whatever thresholds the config has.

    Raises:
        TaskError: it cannot be written.
    """
    (instance,) = predicted.instances
    try:
        answer = build_answer(
            instance,
            PromptFields(**(job.prompt or {})),  # type: ignore[typeddict-item]
            parse_label_config(job.label_config),
            width=width,
            height=height,
            model_version=job.model_version,
            output=Output(**job.output),
            seed=f"{job.task.get('id')}:{job.image}",
        )
    except Exception as error:
        log.exception("turning an answer into a region failed")
        raise TaskError(f"The answer could not be written as a region: {error!r}.") from error
    return {**answer, "precision": predicted.precision}
