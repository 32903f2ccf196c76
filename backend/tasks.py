"""What workers run: fetch the images of a batch, predict them together, turn each into a Label Studio prediction.

One bad image fails its own task and no other. This module is named by queued jobs, so it imports no torch itself; the
predictor comes with the worker.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from rq import get_current_job

from backend.errors import TaskError
from backend.jobs import PredictionJob
from backend.records import Outcome
from integration.images import ImageError
from integration.label_config import parse_label_config
from integration.regions import Output, build_prediction
from model.instance import Instance

log = logging.getLogger(__name__)
FETCH_THREADS = 8


class Predictor(Protocol):
    """The part of model.predictor.Predictor that is used here."""

    labels: tuple[str, ...]
    version: str

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]: ...


Fetch = Callable[[PredictionJob, str], np.ndarray]
Done = Callable[[str, Outcome, Mapping[str, float]], None]


class TaskRunner:
    """Runs batches with one warm predictor.

    Args:
        predictor: model that stays loaded.
        fetch: (job, key of the image in the task's data) -> HxWx3 uint8 RGB.
        done: called with job id, outcome and figures as soon as a task has ended.
    """

    def __init__(self, predictor: Predictor, fetch: Fetch, done: Done) -> None:
        self.predictor = predictor
        self.fetch = fetch
        self.done = done
        self.outcomes: dict[str, Outcome] = {}

    def run(self, jobs: Mapping[str, PredictionJob]) -> None:
        """Predict all of a batch; outcomes are kept for `take`, figures go to `done`. Never raises for a bad task."""
        begun = time.monotonic()
        images = self._images(jobs)
        fetched = time.monotonic()
        instances = self._instances(
            {i: image for i, image in images.items() if isinstance(image, np.ndarray)}
        )
        predicted = time.monotonic()
        for job_id, job in jobs.items():
            found, image = instances.get(job_id), images[job_id]
            error = image if isinstance(image, TaskError) else found if isinstance(found, TaskError) else None
            if error is None:
                assert isinstance(image, np.ndarray)
                assert isinstance(found, list)
                error = self._finish(job_id, job, image, found, begun)
            if error is not None:
                self._end(job_id, Outcome(error=error.error, hint=error.hint), begun, 0, 0)
        log.info(
            "batch of %d: images %.2f s, model %.2f s, regions %.2f s",
            len(jobs), fetched - begun, predicted - fetched, time.monotonic() - predicted,
        )  # fmt: skip

    def take(self, job_id: str, job: PredictionJob) -> Outcome:
        """The outcome of a job of the last batch; runs it alone when it was in none."""
        if job_id not in self.outcomes:
            self.run({job_id: job})
        return self.outcomes.pop(job_id)

    def _images(self, jobs: Mapping[str, PredictionJob]) -> dict[str, np.ndarray | TaskError]:
        def fetch(job: PredictionJob) -> np.ndarray | TaskError:
            try:
                if job.model_version != self.predictor.version:
                    raise TaskError(
                        f"The API asked for model version {job.model_version!r}, this worker serves "
                        f"{self.predictor.version!r}.",
                        "Give API and workers the same TRANSFINER_MODEL and restart the one that is behind.",
                    )
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

    def _instances(self, images: Mapping[str, np.ndarray]) -> dict[str, list[Instance] | TaskError]:
        """All at once; when that fails, one by one, so that only the guilty image fails."""
        if not images:
            return {}
        try:
            return dict(zip(images, self.predictor(list(images.values())), strict=True))
        except Exception as error:
            if len(images) > 1:
                log.warning("a batch of %d failed (%r); running its images one by one", len(images), error)
                return {key: self._instances({key: image})[key] for key, image in images.items()}
            log.exception("the model failed on an image")
            height, width = next(iter(images.values())).shape[:2]
            return {
                next(iter(images)): TaskError(
                    f"The model failed on this image of {width} x {height}: {error!r}."
                )
            }

    def _finish(
        self, job_id: str, job: PredictionJob, image: np.ndarray, found: Sequence[Instance], begun: float
    ) -> TaskError | None:
        height, width = image.shape[:2]
        try:
            prediction, report = build_prediction(
                found, parse_label_config(job.label_config), width=width, height=height,
                model_version=job.model_version, output=Output(**job.output), seed=f"{job.task.get('id')}:{job.image}",
            )  # fmt: skip
        except Exception as error:
            log.exception("turning instances into regions failed")
            return TaskError(f"The prediction could not be written as regions: {error!r}.")
        if report.dropped:
            log.info("task %s: left out %s", job.task.get("id"), report.dropped)
        self._end(job_id, Outcome(prediction=prediction), begun, len(found), len(prediction["result"]))
        return None

    def _end(self, job_id: str, outcome: Outcome, begun: float, instances: int, regions: int) -> None:
        self.outcomes[job_id] = outcome
        seconds = round(time.monotonic() - begun, 3)
        self.done(job_id, outcome, {"instances": instances, "regions": regions, "seconds": seconds})


def output_of(settings_output: Output) -> dict[str, Any]:
    """As it travels in a job."""
    return dataclasses.asdict(settings_output)


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
