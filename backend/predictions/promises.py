"""Deferred tasks of an API process, stored in a file and queued again if the queue server loses them.

Label Studio does not ask twice. A queue server that was emptied, or restarted without its data, has lost the tasks and
the note that they must be delivered; the API still has both in this file, even after it was killed itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis

from backend.errors import ServiceError, StartError
from backend.predictions.projects import Project, Projects
from backend.queue.delivery import DeliveryClaim, DeliveryClaims
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import FAILED, PARKED

log = logging.getLogger(__name__)
Value = TypeVar("Value")
# Promises are compared with the queue server this often, in s.
LOOK_S = 2.0
# Compared and asked for again in one go, so that it takes little memory.
CHUNK = 500
# Label configs and projects are stored once: a request has thousands of tasks.
SCHEMA = """
CREATE TABLE IF NOT EXISTS promises (job TEXT PRIMARY KEY, project TEXT, config TEXT, payload TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS texts (name TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID;
"""


class PromiseKeeper:
    """Stores the deferred tasks ("promises") of an API; a thread compares them with the queue while there are any.

    Args:
        file: outlives the process. Only its user may read it: it has the tokens that Label Studio sent with /setup.
    """

    def __init__(self, queue: JobQueue, deliveries: DeliveryClaims, projects: Projects, file: Path) -> None:
        self.queue = queue
        self.deliveries = deliveries
        self.projects = projects
        self.file = file
        self._database: sqlite3.Connection | None = None
        self._inode = 0
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def resume(self) -> None:
        """Continue with the promises of an earlier process; a damaged file is put aside."""
        try:
            count = self._mended(self._count_whole)
        except (sqlite3.Error, OSError) as error:
            raise StartError(
                f"Predictions that come late cannot be noted in {self.file}: {error}.",
                "Correct TRANSFINER_PROMISES_FOLDER.",
            ) from error
        if count:
            log.warning("%d predictions were promised before this start and are looked after", count)
            self._start()

    def keep(self, project: Project, jobs: Sequence[PredictionJob]) -> None:
        """Note that predictions of these tasks are promised.

        Raises:
            ServiceError: the file cannot be written, so nothing may be promised.
        """
        rows = [(job.id, project.key, job.payload()["label_config"], json.dumps(job.payload())) for job in jobs]
        texts = {project.key: json.dumps(vars(project))}
        texts |= {row[2]: json.dumps(job.label_config) for row, job in zip(rows, jobs, strict=True)}
        try:
            self._mended(lambda: self._insert(texts, rows))
        except (sqlite3.Error, OSError) as error:
            raise ServiceError(
                f"Predictions that come late cannot be noted in {self.file}: {error}.",
                "Make room on the disk, or correct TRANSFINER_PROMISES_FOLDER; then ask again.",
                status=503,
            ) from error
        self._start()

    def __len__(self) -> int:
        with self._lock:
            (count,) = self._opened().execute("SELECT count(*) FROM promises").fetchone()
        return int(count)

    def _count_whole(self) -> int:
        """Number of promises, after a check that the file is not damaged."""
        for (words,) in self._opened().execute("PRAGMA quick_check"):
            if words != "ok":
                raise sqlite3.DatabaseError(words)
        return len(self)

    def _insert(self, texts: Mapping[str, str], rows: Sequence[tuple[str, ...]]) -> None:
        with self._opened() as database:
            database.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", texts.items())
            database.executemany("INSERT OR IGNORE INTO promises VALUES (?, ?, ?, ?)", rows)

    def _mended(self, action: Callable[[], Value]) -> Value:
        """Run an action, again on a new file if the old one is damaged. The queue server still has what is lost."""
        with self._lock:
            try:
                return action()
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:
                    raise  # the disk, the folder or another process's lock
                self._put_aside(error)
                return action()

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        self._close()
        if self.file.stat().st_ino != self._inode:
            return  # another API process has done it
        damaged_file = self.file.with_name(f"{self.file.name}.damaged-{uuid.uuid4().hex[:8]}")
        self.file.rename(damaged_file)
        log.error("%s is damaged (%s); it lies in %s now, and a new one is begun", self.file, error, damaged_file.name)

    def look(self) -> list[str]:
        """Drop promises that were delivered or failed, queue again those that the queue server lost; ids of the latter.

        Raises:
            RedisError: it does not answer; another look will do.
        """
        with self._lock:
            ids = [job_id for (job_id,) in self._opened().execute("SELECT job FROM promises")]
        forgotten_ids = []
        for start in range(0, len(ids), CHUNK):
            forgotten_ids += self._look_at(ids[start : start + CHUNK])
        return forgotten_ids

    def _look_at(self, ids: list[str]) -> list[str]:
        deferred = self.deliveries.deferred_of(ids)
        other_ids = [job_id for job_id in ids if job_id not in deferred]
        notes = self.queue.records.fields(other_ids, "state", "delivery")
        settled_ids = [
            job_id
            for job_id in other_ids
            if notes[job_id][1] in ("answered", "pushed") or notes[job_id][0] in (FAILED, PARKED)
        ]
        forgotten_ids = [job_id for job_id in other_ids if job_id not in set(settled_ids)]
        self._restore_projects()
        if forgotten_ids:
            self._ask_again(forgotten_ids)
        with self._lock, self._opened() as database:
            database.executemany("DELETE FROM promises WHERE job = ?", [(job_id,) for job_id in settled_ids])
            database.execute("DELETE FROM texts WHERE NOT EXISTS (SELECT 1 FROM promises)")
        return forgotten_ids

    def _restore_projects(self) -> None:
        """Save projects again that the queue server lost: nothing can be pushed without the address from /setup."""
        with self._lock:
            rows = self._opened().execute("SELECT text FROM texts WHERE name IN (SELECT project FROM promises)")
            projects = [_made(Project, json.loads(text)) for (text,) in rows]
        for project in projects:
            if project.hostname and not self.projects.get(project.key).hostname:
                self.projects.save(project)

    def _ask_again(self, ids: list[str]) -> None:
        log.warning("the queue server forgot %d deferred task(s); they are queued again", len(ids))
        query = "SELECT payload, text FROM promises JOIN texts ON config = name WHERE job = ?"
        with self._lock:
            rows = [row for job_id in ids for row in self._opened().execute(query, (job_id,))]
        jobs = [_made(PredictionJob, json.loads(job) | {"label_config": json.loads(config)}) for job, config in rows]
        self.queue.submit(jobs)
        # A push may have been under way, so the pusher checks in Label Studio first.
        facts = {job.id: {"project": job.project, "task": job.task["id"], "uncertain": True} for job in jobs}
        self.deliveries.defer(DeliveryClaim("promises:0:0", tuple(facts)), facts)

    def _opened(self) -> sqlite3.Connection:
        """The open database; what was written survives a crash of the machine, too."""
        if self._database is None:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
            self._inode = self.file.stat().st_ino
            self._database = sqlite3.connect(self.file, timeout=10, check_same_thread=False)
            self._database.execute("PRAGMA auto_vacuum = FULL")
            self._database.executescript(SCHEMA)
        return self._database

    def close(self) -> None:
        """End the thread and close the file; only needed where the process goes on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="promises", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.look()
            except redis.RedisError as error:
                log.debug("the queue server does not answer: %s", error)
            except Exception:
                log.exception("looking after promises failed; trying again")
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._mended(self._count_whole)


def _made(kind: type[Value], facts: dict[str, Any]) -> Value:
    """Build an object from stored facts; fields of an earlier release that no longer exist are left out."""
    return kind(**{name: value for name, value in facts.items() if name in kind.__dataclass_fields__})  # type: ignore[attr-defined]
