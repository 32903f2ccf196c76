"""Run a batch: fetch its images, predict them together, turn each into a Label Studio prediction.

Three stages that a worker overlaps (backend/worker/main.py). One bad image fails its own task only.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import TaskError
from backend.queue.job_queue import PredictionJob
from backend.queue.job_store import FinishedJob, JobOutcome
from backend.versions.resolve import ServedModel
from backend.worker.images import BatchFetcher, Fetch, FetchedImages
from backend.worker.model_cache import OomPolicy, PredictedImage, Predictor, WarmModels, predict_with_fallback
from backend.worker.prompt_runner import PromptRunner
from integration.label_studio.label_config import Output, parse_label_config
from integration.label_studio.prompts import PromptFields
from integration.label_studio.tasks import Prediction
from integration.regions.prompts import build_answer
from integration.regions.write import Scorer, build_prediction
from model.inference.tiling import Tiling
from training.snapshots.annotation_cost import EffortError, load_effort

log = logging.getLogger(__name__)
Done = Callable[[Mapping[str, FinishedJob], Mapping[str, float]], None]


@dataclass
class PredictedTask:
    """A batch after the network. It keeps no images: those of two other batches are in memory already.

    Attributes:
        sizes: height and width of each upright image in px, or the error.
    """

    jobs: Mapping[str, PredictionJob]
    sizes: dict[str, tuple[int, int] | TaskError] = field(default_factory=dict)
    models: dict[str, ServedModel] = field(default_factory=dict)
    predicted_images: dict[str, PredictedImage | TaskError] = field(default_factory=dict)
    stages_s: dict[str, float] = field(default_factory=dict)


class TaskRunner:
    """Runs batches with warm predictors.

    Args:
        models: the predictors of all versions; None for a worker that answers prompts only.
        fetch: (job, key of the image in the task's data) -> HxWx3 uint8 RGB.
        on_finished: called with a batch's finished jobs and the seconds of its stages.
        prompts: answers interactive jobs; None where no promptable model is installed.

    Attributes:
        warm_models: the models of whole images, or the promptable one of a worker that answers prompts only.
    """

    def __init__(
        self,
        models: WarmModels | None,
        fetch: Fetch,
        on_finished: Done,
        *,
        tiling: Tiling | None = None,
        tile_batch: int = 1,
        prompts: PromptRunner | None = None,
    ) -> None:
        warm_models = prompts if models is None else models
        if warm_models is None:
            raise ValueError("a worker needs models of whole images or a promptable one, got neither")
        self.warm_models: WarmModels | PromptRunner = warm_models
        self.models = models
        self.prompts = prompts
        self._fetch = fetch
        self.fetcher = BatchFetcher(self._fetched)
        self.on_finished = on_finished
        self.tiling = tiling or Tiling()
        self.tile_batch = tile_batch

    def _fetched(self, job: PredictionJob, value_key: str) -> np.ndarray:
        """Fetch the image of a job, or take that of an earlier prompt."""
        if job.prompt is None or self.prompts is None:
            return self._fetch(job, value_key)
        image = self.prompts.remembered(job)
        if image is None:
            image = self._fetch(job, value_key)
            self.prompts.remember(job, image)
        return image

    def predict(self, jobs: Mapping[str, PredictionJob], images: FetchedImages) -> PredictedTask:
        """Wait for the images and run the network; for the main thread, which signals interrupt.

        Never raises for a bad task.
        """
        batch = PredictedTask(jobs)
        images_by_job = images.all()
        batch.stages_s["images"] = images.seconds()
        begun = time.monotonic()
        groups = self._by_model(batch, images_by_job)
        if self.models is not None:
            for model, arrays in groups.items():
                batch.predicted_images |= self._predicted(self.models, model, arrays)
        batch.stages_s["model"] = time.monotonic() - begun
        return batch

    def _by_model(
        self, batch: PredictedTask, images: Mapping[str, np.ndarray | TaskError]
    ) -> dict[ServedModel, dict[str, np.ndarray]]:
        """Group the images by model; jobs of several projects are one batch when they have the same model."""
        groups: dict[ServedModel, dict[str, np.ndarray]] = {}
        for job_id, image in images.items():
            job = batch.jobs[job_id]
            if isinstance(image, TaskError):
                batch.sizes[job_id] = image
                continue
            batch.sizes[job_id] = image.shape[0], image.shape[1]
            if job.prompt is not None:
                batch.predicted_images[job_id] = self._prompted(job, image)
                continue
            try:
                if self.models is None:
                    raise TaskError(
                        f"A worker for prompts was given a whole image of project {job.project!r}.",
                        "Give API and workers the same TRANSFINER_PROMPT_MODEL.",
                    )
                batch.models[job_id] = self.models.find(job.project, job.model_version)
                groups.setdefault(batch.models[job_id], {})[job_id] = image
            except TaskError as error:
                batch.sizes[job_id] = error
        return groups

    def _predicted(
        self, models: WarmModels, model: ServedModel, images: Mapping[str, np.ndarray]
    ) -> Mapping[str, PredictedImage | TaskError]:
        def spare() -> Predictor | None:
            try:
                return models.spare(model)
            except TaskError as error:
                log.error("no model on the CPU: %s", error)
                return None

        try:
            predictor = models.predictor(model)
        except TaskError as error:
            return dict.fromkeys(images, error)
        return predict_with_fallback(predictor, images, OomPolicy(self.tiling, self.tile_batch, spare))

    def _prompted(self, job: PredictionJob, image: np.ndarray) -> PredictedImage | TaskError:
        if self.prompts is None:
            return TaskError("This worker has no promptable model.", "Set TRANSFINER_PROMPT_MODEL for workers and API.")
        try:
            return PredictedImage([self.prompts.answer(job, image)], precision=self.prompts.precision)
        except TaskError as error:
            return error
        except Exception as error:
            log.exception("a prompt failed unexpectedly")
            return TaskError(f"The prompt could not be answered: {error!r}.", "The worker's log has more.")

    def write(self, batch: PredictedTask) -> None:
        """Turn the instances of a batch into predictions and hand them to `on_finished`."""
        begun = time.monotonic()
        shared_s = (batch.stages_s["images"] + batch.stages_s["model"]) / len(batch.jobs)
        finished_jobs = {job_id: self._ended(batch, job_id, shared_s) for job_id in batch.jobs}
        stages_s = {**batch.stages_s, "regions": time.monotonic() - begun}
        log.info("batch of %d: %s", len(batch.jobs), ", ".join(f"{name} {s:.2f} s" for name, s in stages_s.items()))
        self.on_finished(finished_jobs, stages_s)

    def fail(self, jobs: Mapping[str, PredictionJob], error: TaskError) -> None:
        """End all tasks of a batch with the same error."""
        outcome = JobOutcome(error=error.error, hint=error.hint)
        zero_figures = {"instances": 0, "regions": 0, "objects": 0, "seconds": 0.0}
        self.on_finished(dict.fromkeys(jobs, FinishedJob(outcome, zero_figures)), {})

    def _ended(self, batch: PredictedTask, job_id: str, shared_s: float) -> FinishedJob:
        begun = time.monotonic()
        outcome, instances = self._outcome(batch, job_id)
        result = outcome.prediction["result"] if outcome.prediction is not None else []
        # An object has a region for each control that takes it.
        objects = max(Counter(region.get("from_name") for region in result).values(), default=0)
        seconds = round(shared_s + time.monotonic() - begun, 3)
        job = batch.jobs[job_id]
        log.info(
            "task %s of project %s: %s",
            job.task.get("id"),
            job.project,
            outcome.error or f"{instances} object(s), {len(result)} region(s)",
            extra={
                "request_id": job.request_id,
                "project": job.project,
                "task": job.task.get("id"),
                "job": job_id,
                "version": job.model_version,
            },
        )
        facts = {"instances": instances, "regions": len(result), "objects": objects, "seconds": seconds}
        return FinishedJob(outcome, facts)

    def _outcome(self, batch: PredictedTask, job_id: str) -> tuple[JobOutcome, int]:
        """The outcome of a task, and its number of instances."""
        size, image = batch.sizes[job_id], batch.predicted_images.get(job_id)
        try:
            if isinstance(size, TaskError):
                raise size
            if image is None or isinstance(image, TaskError):
                raise image or TaskError("The image was not predicted.")
            model = batch.models.get(job_id)
            prediction = prediction_of(batch.jobs[job_id], image, *size, model.directory if model else None)
        except TaskError as error:
            return JobOutcome(error=error.error, hint=error.hint), 0
        return JobOutcome(prediction=prediction), len(image.instances)


def find_scorer(directory: Path) -> Scorer | None:
    """The scorer of a checkpoint directory; None when it has none, or it orders no better than certainty."""
    try:
        effort = load_effort(directory)
    except EffortError as error:
        # A missing order of tasks must not fail the prediction.
        log.error("tasks are ordered by the score without calibration: %s", error)
        return None
    return effort.score if effort is not None and effort.is_useful else None


def prediction_of(job: PredictionJob, image: PredictedImage, height: int, width: int, model: Path | None) -> Prediction:
    """Build the prediction of one task; its regions carry the note of a degraded one.

    The answer to an interactive job is one object with the annotator's label, whatever the thresholds are.

    Args:
        model: checkpoint directory, which may carry a calibrated task score; None for an interactive job.
    """
    config = parse_label_config(job.label_config)
    options: dict[str, Any] = {"width": width, "height": height, "model_version": job.model_version}
    try:
        options |= {"output": Output(**job.output), "seed": f"{job.task.get('id')}:{job.image}"}
        if model is None:
            (instance,) = image.instances
            prediction = build_answer(instance, PromptFields(**(job.prompt or {})), config, **options)  # type: ignore[typeddict-item]
        else:
            prediction, drop_counts = build_prediction(image.instances, config, scorer=find_scorer(model), **options)
            if drop_counts:
                left_out = {str(why): count for why, count in drop_counts.items()}
                log.info("task %s, left out: %s", job.task.get("id"), left_out)
    except Exception as error:
        log.exception("turning instances into regions failed")
        raise TaskError(f"The prediction could not be written as regions: {error!r}.") from error
    for region in prediction["result"] if image.note else ():
        # Label Studio keeps this text with the region, so that annotators see it; one sentence is enough.
        region["meta"] = {"text": [image.note]}
    return {**prediction, "precision": image.precision}
