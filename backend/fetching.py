"""The images of a batch, fetched and decoded by a pool of threads while others do something else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from backend.errors import TaskError
from backend.jobs import PredictionJob
from integration.images import ImageError
from integration.label_config import parse_label_config

log = logging.getLogger(__name__)
FETCH_THREADS = 8
Fetch = Callable[[PredictionJob, str], np.ndarray]


class Images:
    """Images on their way, since `begun` (time.monotonic())."""

    def __init__(
        self, futures: Mapping[str, Future[tuple[np.ndarray | TaskError, float]]], begun: float
    ) -> None:
        self._futures = futures
        self._begun = begun

    def all(self) -> dict[str, np.ndarray | TaskError]:
        """HxWx3 uint8 RGB by job id, or why there is none; waits for the last one."""
        return {job_id: future.result()[0] for job_id, future in self._futures.items()}

    def seconds(self) -> float:
        """From the beginning until the last one was there, whether anybody waited or not."""
        return max(future.result()[1] for future in self._futures.values()) - self._begun


class Fetcher:
    """Starts fetching the images of batches.

    Args:
        fetch: (job, key of the image in the task's data) -> HxWx3 uint8 RGB; called from several threads.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")

    def begin(self, jobs: Mapping[str, PredictionJob]) -> Images:
        begun = time.monotonic()
        return Images({job_id: self._pool.submit(self._fetched, job) for job_id, job in jobs.items()}, begun)

    def _fetched(self, job: PredictionJob) -> tuple[np.ndarray | TaskError, float]:
        return self._tried(job), time.monotonic()

    def _tried(self, job: PredictionJob) -> np.ndarray | TaskError:
        try:
            return self._fetch(job, parse_label_config(job.label_config).value_key)
        except TaskError as error:
            return error
        except ImageError as error:
            return TaskError(str(error))
        except Exception as error:
            log.exception("fetching the image of task %s failed unexpectedly", job.task.get("id"))
            return TaskError(f"The image could not be fetched: {error!r}.", "The worker's log has more.")
