"""What workers run: fetch the images of a batch, predict them together, turn each into a Label Studio prediction.

One bad image fails its own task and no other. This module is named by queued jobs, so it imports no torch itself; the
predictor comes with the worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from rq import get_current_job
from rq.timeouts import JobTimeoutException

from backend.careful import Care, Found, predict_carefully
from backend.effort_scores import find_scorer
from backend.errors import TaskError
from backend.jobs import PredictionJob
from backend.predictor import Predictor
from backend.records import Outcome
from backend.served_model import ServedModel
from integration.images import ImageError
from integration.label_config import parse_label_config
from integration.regions import Output, build_prediction
from model.tiling import Tiling

log = logging.getLogger(__name__)
FETCH_THREADS = 8


Fetch = Callable[[PredictionJob, str], np.ndarray]
Done = Callable[[str, Outcome, Mapping[str, float]], None]


class Models(Protocol):
    """The part of `backend.warm_model.WarmModels` that is used here."""

    def find(self, project_key: str, version: str) -> ServedModel: ...

    def predictor(self, served: ServedModel) -> Predictor: ...

    def spare(self, served: ServedModel) -> Predictor | None: ...


class TaskRunner:
    """Runs batches with warm predictors.

    Args:
        models: gives the predictor of the version that a job names.
        fetch: (job, key of the image in the task's data) -> HxWx3 uint8 RGB.
        done: called with job id, outcome and figures as soon as a task has ended.
        tiling: which images are cut, and how.
        tile_batch: tiles of one image predicted together.
        measured: called after each batch with its stages' seconds.
    """

    def __init__(
        self,
        models: Models,
        fetch: Fetch,
        done: Done,
        *,
        tiling: Tiling | None = None,
        tile_batch: int = 1,
        measured: Callable[[Mapping[str, float]], None] = lambda _: None,
    ) -> None:
        self.models = models
        self.fetch = fetch
        self.done = done
        self.tiling = tiling or Tiling()
        self.tile_batch = tile_batch
        self.measured = measured
        self.outcomes: dict[str, Outcome] = {}

    def run(self, jobs: Mapping[str, PredictionJob]) -> None:
        """Predict all of a batch; outcomes are kept for `take`, figures go to `done`. Never raises for a bad task."""
        begun = time.monotonic()
        images = self._images(jobs)
        fetched = time.monotonic()
        groups: dict[ServedModel, dict[str, np.ndarray]] = {}
        for job_id, job in jobs.items():
            try:
                if isinstance(image := images[job_id], np.ndarray):
                    model = self.models.find(job.project, job.model_version)
                    groups.setdefault(model, {})[job_id] = image
            except TaskError as error:
                images[job_id] = error
        found: dict[str, Found | TaskError] = {}
        for model, arrays in groups.items():
            found |= self._predicted(model, arrays)
        predicted = time.monotonic()
        for job_id, job in jobs.items():
            self._finish(job_id, job, images[job_id], found.get(job_id), begun)
        stages = {
            "images": fetched - begun,
            "model": predicted - fetched,
            "regions": time.monotonic() - predicted,
        }
        self.measured(stages)
        log.info("batch of %d: %s", len(jobs), ", ".join(f"{name} {s:.2f} s" for name, s in stages.items()))

    def _predicted(
        self, model: ServedModel, images: Mapping[str, np.ndarray]
    ) -> Mapping[str, Found | TaskError]:
        """Jobs of several projects are one batch when they have the same model."""

        def spare() -> Predictor | None:
            try:
                return self.models.spare(model)
            except TaskError as error:
                log.error("no model on the CPU: %s", error)
                return None

        try:
            predictor = self.models.predictor(model)
        except TaskError as error:
            return dict.fromkeys(images, error)
        return predict_carefully(predictor, images, Care(self.tiling, self.tile_batch, spare))

    def take(self, job_id: str, job: PredictionJob) -> Outcome:
        """The outcome of a job of the last batch; runs it alone when it was in none."""
        if job_id not in self.outcomes:
            self.run({job_id: job})
        return self.outcomes.pop(job_id)

    def _images(self, jobs: Mapping[str, PredictionJob]) -> dict[str, np.ndarray | TaskError]:
        def fetch(job: PredictionJob) -> np.ndarray | TaskError:
            try:
                return self.fetch(job, parse_label_config(job.label_config).value_key)
            except TaskError as error:
                return error
            except ImageError as error:
                return TaskError(str(error))
            except Exception as error:
                log.exception("fetching the image of task %s failed unexpectedly", job.task.get("id"))
                return TaskError(f"The image could not be fetched: {error!r}.", "The worker's log has more.")

        with ThreadPoolExecutor(min(FETCH_THREADS, len(jobs))) as pool:
            return dict(zip(jobs, pool.map(fetch, jobs.values()), strict=True))

    def _finish(
        self,
        job_id: str,
        job: PredictionJob,
        image: np.ndarray | TaskError,
        found: Found | TaskError | None,
        begun: float,
    ) -> None:
        try:
            if isinstance(image, TaskError):
                raise image
            if found is None or isinstance(found, TaskError):
                raise found or TaskError("The image was not predicted.")
            prediction = self._written(job, image, found)
        except TaskError as error:
            self._end(job_id, job, Outcome(error=error.error, hint=error.hint), begun, 0, 0)
            return
        regions = len(prediction["result"])
        self._end(job_id, job, Outcome(prediction=prediction), begun, len(found.instances), regions)

    def _written(self, job: PredictionJob, image: np.ndarray, found: Found) -> dict[str, Any]:
        height, width = image.shape[:2]
        try:
            prediction, report = build_prediction(
                found.instances, parse_label_config(job.label_config), width=width, height=height,
                model_version=job.model_version, output=Output(**job.output), seed=f"{job.task.get('id')}:{job.image}",
                scorer=find_scorer(self.models.find(job.project, job.model_version).directory),
            )  # fmt: skip
        except JobTimeoutException:
            raise
        except Exception as error:
            log.exception("turning instances into regions failed")
            raise TaskError(f"The prediction could not be written as regions: {error!r}.") from error
        if changes := report.changes():
            log.info("task %s: %s", job.task.get("id"), changes)
        for region in prediction["result"] if found.note else ():
            # Label Studio keeps this text with the region, so that annotators see it.
            region.setdefault("meta", {}).setdefault("text", []).append(found.note)
        return prediction

    def _end(
        self, job_id: str, job: PredictionJob, outcome: Outcome, begun: float, instances: int, regions: int
    ) -> None:
        self.outcomes[job_id] = outcome
        seconds = round(time.monotonic() - begun, 3)
        self.done(job_id, outcome, {"instances": instances, "regions": regions, "seconds": seconds})
        log.info(
            "task %s of project %s: %s", job.task.get("id"), job.project,
            outcome.error or f"{instances} object(s), {regions} region(s)",
            extra={
                "request_id": job.request_id, "project": job.project, "task": job.task.get("id"), "job": job_id,
                "version": job.model_version,
            },
        )  # fmt: skip


_runner: TaskRunner | None = None


def use_runner(runner: TaskRunner | None) -> None:
    """Set the runner of this process; the worker does it once, before it takes jobs."""
    global _runner
    _runner = runner


def predict_task(payload: dict[str, Any]) -> dict[str, int]:
    """The function behind every queued job.

    Returns:
        How many regions there are; the prediction itself is in the task's record.

    Raises:
        TaskError: the task failed; RQ then lists it as failed.
    """
    job = get_current_job()
    if _runner is None or job is None:
        raise TaskError(
            "This job was taken by a plain RQ worker, which has no model.",
            "Start workers with `transfiner worker`.",
        )
    outcome = _runner.take(job.id, PredictionJob.from_payload(payload))
    if outcome.prediction is None:
        raise TaskError(outcome.error, outcome.hint)
    return {"regions": len(outcome.prediction["result"])}
