"""Predicts the tasks that nobody has annotated yet with a new version, in the background.

They become ordinary jobs whose predictions were "deferred": workers compute them, the pusher stores them in bulk, and
somebody who opens one of the tasks meanwhile gets it at once. Nothing here waits.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from redis import Redis

from backend.predictions.projects import Project
from backend.predictions.schemas import TaskItem
from backend.predictions.service import Predictions
from backend.queue.connection import text
from backend.queue.delivery import DeliveryClaims
from backend.queue.keys import repredict_key
from backend.settings import Settings
from backend.versions.resolve import read_served_model, version_directory
from integration.label_studio.client import LabelStudioClient

CHUNK = 200
TOTAL_TTL_S = 24 * 3600


class Repredictor:
    """Asks for predictions as Label Studio would, and leaves them to the pusher."""

    def __init__(self, settings: Settings, connection: Redis) -> None:
        self.settings = settings
        self.connection = connection
        self.predictions = Predictions(connection, settings)

    def run(self, project: Project, client: LabelStudioClient, version: str) -> int:
        """Ask for every task without annotation and without a prediction of the version; their number."""
        if not project.hostname or not project.label_config:
            return 0  # it never called /setup: nothing could be pushed
        tasks = [
            TaskItem(id=task["id"], data=task["data"])
            for task in client.iter_tasks(int(project.id))
            if not task.get("annotations")
            and not any(prediction.get("model_version") == version for prediction in task.get("predictions") or ())
        ]
        key = repredict_key(project.id)
        facts: dict[Any, Any] = {"version": version, "total": len(tasks), "since": time.time()}
        self.connection.hset(key, mapping=facts)
        self.connection.expire(key, TOTAL_TTL_S)
        for start in range(0, len(tasks), CHUNK):
            self._ask(project, tasks[start : start + CHUNK], version)
        return len(tasks)

    def _ask(self, project: Project, tasks: list[TaskItem], version: str) -> None:
        model = read_served_model(version_directory(self.settings, project.key, version) or self.settings.model)
        jobs = self.predictions.jobs(project, tasks, model, request_id=f"repredict-{uuid.uuid4().hex[:8]}")
        claim = self.predictions.deliveries.claim(jobs[0].request_id, [job.id for job in jobs], lifetime_s=60.0)
        self.predictions.queue.submit(jobs)
        facts = {job.id: {"project": project.key, "task": job.task["id"]} for job in jobs}
        self.predictions.deliveries.defer(claim, facts)


def repredicting(connection: Redis, project: str) -> dict[str, Any]:
    """Progress for people: version, total, left; {} when there is nothing to tell."""
    row = {text(name): text(value) for name, value in connection.hgetall(repredict_key(project)).items()}
    if not row or not int(row["total"]):
        return {}
    left = DeliveryClaims(connection).count_deferred_of(project)
    return {"version": row["version"], "total": int(row["total"]), "left": min(left, int(row["total"]))}
