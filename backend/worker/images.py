"""The images of a batch, fetched and decoded by a pool of threads with the credentials of their Label Studio."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import redis

from backend.errors import StartError, TaskError
from backend.predictions.projects import Project, Projects
from backend.queue.job_queue import PredictionJob
from backend.settings import Settings
from integration.images.fetch import FetchSettings, ImageError, ImageFetcher
from integration.label_studio.label_config import parse_label_config
from model.images import MemoryBudget

log = logging.getLogger(__name__)
FETCH_THREADS = 8
Fetch = Callable[[PredictionJob, str], np.ndarray]


class FetchedImages:
    """Images that are being fetched, since `begun` (time.monotonic())."""

    def __init__(self, futures: Mapping[str, Future[tuple[np.ndarray | TaskError, float]]], begun: float) -> None:
        self._futures = futures
        self._begun = begun

    def all(self) -> dict[str, np.ndarray | TaskError]:
        """Wait for all images: HxWx3 uint8 RGB, or an error, by job id."""
        return {job_id: future.result()[0] for job_id, future in self._futures.items()}

    def seconds(self) -> float:
        """Seconds from the beginning until the last image was there."""
        return max(future.result()[1] for future in self._futures.values()) - self._begun


class BatchFetcher:
    """Starts fetching the images of batches.

    Args:
        fetch: (job, key of the image in the task's data) -> HxWx3 uint8 RGB; called from several threads.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")

    def begin(self, jobs: Mapping[str, PredictionJob]) -> FetchedImages:
        begun = time.monotonic()

        def fetched(job: PredictionJob) -> tuple[np.ndarray | TaskError, float]:
            return self._tried(job), time.monotonic()

        return FetchedImages({job_id: self._pool.submit(fetched, job) for job_id, job in jobs.items()}, begun)

    def _tried(self, job: PredictionJob) -> np.ndarray | TaskError:
        if not job.label_config:
            return TaskError("The task waited so long that its label config was forgotten.", "Ask for it again.")
        try:
            return self._fetch(job, parse_label_config(job.label_config).value_key)
        except TaskError as error:
            return error
        except ImageError as error:
            return TaskError(str(error))
        except redis.RedisError:
            # Not the task's fault: the batch is given up, and taken again once the queue server is back.
            raise
        except Exception as error:
            log.exception("fetching the image of task %s failed unexpectedly", job.task.get("id"))
            return TaskError(f"The image could not be fetched: {error!r}.", "The worker's log has more.")


# A fetcher keeps connections and access tokens, one for each Label Studio account; beyond this the least used is
# dropped.
MOST_FETCHERS = 16


def label_studio_of(settings: Settings, project: Project) -> tuple[str, str]:
    """Address and key of a project's Label Studio: our own settings win over what /setup said.

    The key of the settings is sent to the address of the settings only: anybody may send a /setup. Both are empty when
    the address of /setup is not trusted.
    """
    if settings.label_studio_url:
        return settings.label_studio_url, settings.label_studio_api_key.get_secret_value() or project.token
    return (project.hostname, project.token) if project.is_believed else ("", "")


class ImageSource:
    """Fetches the image of a job; safe to use from several threads.

    Raises:
        StartError: the cache of the settings cannot be a folder, so every task would fail.
    """

    def __init__(self, settings: Settings, projects: Projects) -> None:
        if settings.image_cache:
            try:
                Path(settings.image_cache).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StartError(
                    f"The image cache {settings.image_cache} cannot be used as a folder: {error}.",
                    "Correct TRANSFINER_IMAGE_CACHE; empty means no cache.",
                ) from error
        self.settings = settings
        self.projects = projects
        self._fetchers: OrderedDict[tuple[str, str, str], ImageFetcher] = OrderedDict()
        self._lock = threading.Lock()
        self._budget = MemoryBudget(int(settings.max_decoding_mib * 2**20))

    def fetch(self, job: PredictionJob, value_key: str) -> np.ndarray:
        """HxWx3 uint8 RGB, turned as its EXIF says.

        Raises:
            ImageError: the image cannot be fetched or decoded.
        """
        project = self.projects.get(job.project) if job.project else Project(key="")
        return self.fetcher(project).fetch(job.task, value_key)

    def fetcher(self, project: Project) -> ImageFetcher:
        """The fetcher with the credentials of a project's Label Studio; it keeps connections and access tokens."""
        url, key = label_studio_of(self.settings, project)
        identity = (url, key, project.hostname)
        with self._lock:
            fetcher = self._fetchers.pop(identity, None) or ImageFetcher(
                fetch_settings(self.settings, url, key, project.hostname), budget=self._budget
            )
            self._fetchers[identity] = fetcher
            while len(self._fetchers) > MOST_FETCHERS:
                self._fetchers.popitem(last=False)
        return fetcher


def fetch_settings(settings: Settings, url: str, key: str = "", hostname: str = "") -> FetchSettings:
    """How images of the Label Studio at `url` are fetched; `hostname`: its address as it sees itself."""
    return FetchSettings(
        label_studio_url=url,
        api_key=key,
        label_studio_aliases=(hostname,) if hostname and hostname != url else (),
        cache_dir=Path(settings.image_cache) if settings.image_cache else None,
        cache_bytes=int(settings.image_cache_mib * 2**20),
        max_bytes=int(settings.max_image_mib * 2**20),
        max_pixels=int(settings.max_image_megapixels * 1e6),
        timeout_s=settings.image_timeout_s,
        max_redirects=settings.max_redirects,
        private_hosts=tuple(host.strip() for host in settings.private_image_hosts.split(",") if host.strip()),
    )
