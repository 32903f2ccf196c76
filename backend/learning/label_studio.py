"""A project's Label Studio: new annotations, the snapshot, the settings that our backend needs, tasks predicted anew.

When to train is derived from its data and the newest snapshot, never counted in a process. A webhook only says "look
now", so a lost, doubled, delayed or forged one changes nothing: the same data gives the same answer, and once a
snapshot holds the annotations there is nothing to train on.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from redis import Redis

from backend.doctor.connection import ConnectionUpdate, connection_changes, is_first_connection, is_ours
from backend.errors import ServiceError
from backend.predictions.projects import Project, Projects, TaskItem
from backend.predictions.service import Predictions
from backend.queue.keys import repredict_key
from backend.queue.train_queue import CORRECTIONS, SCHEDULE
from backend.settings import Settings
from backend.versions.resolve import ServedModel, read_served_model, registry_of, served_model, version_directory
from backend.worker.images import ImageSource, label_studio_of
from integration.label_studio.client import LabelStudioClient
from integration.label_studio.notice import is_notice
from integration.label_studio.tasks import parse_time

# A task and its annotation are saved one after the other.
CLOCK_MARGIN = timedelta(minutes=5)


@dataclass(frozen=True)
class TriggerState:
    """New annotations of a project, and its last round.

    Attributes:
        new_annotations: newer than the newest snapshot (all of them when there is none); skipped ones do not count.
        since_h: hours since the last round ended; None without one.
        failed_at: how many were new when the last round failed, -1 when it did not: the same data is not tried again
            unless somebody asks.
    """

    new_annotations: int
    since_h: float | None = None
    failed_at: int = -1


def count_new_annotations(client: LabelStudioClient, project_id: int, newest_at: str) -> int:
    """Count annotations that were made or changed after `newest_at` (ISO 8601 with an offset; "" for all)."""
    since = parse_time(newest_at)
    return sum(
        1
        for task in client.iter_tasks(project_id, query=_changed_since(since))
        for annotation in task.get("annotations") or ()
        if not annotation.get("was_cancelled") and parse_time(annotation.get("updated_at")) > since
    )


def training_reason(state: TriggerState, settings: Settings) -> str:
    """The trigger that asks for a training now; "" for none, always so without new annotations."""
    if state.new_annotations <= max(0, state.failed_at):
        return ""
    if settings.train_after and state.new_annotations >= settings.train_after:
        return CORRECTIONS
    if settings.train_every_h and (state.since_h is None or state.since_h >= settings.train_every_h):
        return SCHEDULE
    return ""


def _changed_since(since: datetime) -> str:
    """The data manager's filter for changed tasks, so that a project of 100,000 tasks is not read every minute.

    Label Studio sets a task's own time whenever an annotation of it is saved, but not when many are made at once from
    predictions: those have a new time of completion.
    """
    if since == datetime.min.replace(tzinfo=UTC):
        filter_name = "filter:tasks:total_annotations"
        items = [{"filter": filter_name, "operator": "greater", "type": "Number", "value": 0}]
    else:
        value = (since - CLOCK_MARGIN).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        items = [
            {"filter": f"filter:tasks:{name}", "operator": "greater_or_equal", "type": "Datetime", "value": value}
            for name in ("updated_at", "completed_at")
        ]
    return json.dumps({"filters": {"conjunction": "or", "items": items}})


CHUNK = 200
TOTAL_TTL_S = 24 * 3600


class Repredictor:
    """Requests predictions as Label Studio would, and leaves their delivery to the pusher."""

    def __init__(self, settings: Settings, connection: Redis) -> None:
        self.settings = settings
        self.connection = connection
        self.predictions = Predictions(connection, settings)

    def run(self, project: Project, client: LabelStudioClient, version: str) -> int:
        """Predict every task without annotation and without a prediction of the version; the number of tasks."""
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


log = logging.getLogger(__name__)
SHOWN_COLUMNS = ("tasks:predictions_score", "tasks:predictions_model_versions")
# Columns that the data manager of Label Studio 1.23 hides by default.
HIDDEN_COLUMNS = [
    *("tasks:inner_id", "tasks:annotations_results", "tasks:annotations_ids", *SHOWN_COLUMNS),
    *("tasks:predictions_results", "tasks:file_upload", "tasks:storage_filename", "tasks:created_at"),
    *("tasks:updated_at", "tasks:updated_by", "tasks:avg_lead_time", "tasks:draft_exists"),
]
Json = dict[str, Any]


def connect(settings: Settings, project: Project) -> LabelStudioClient:
    """A client for the project's Label Studio. Raises ServiceError when its address is not known."""
    url, key = label_studio_of(settings, project)
    if not url:
        raise ServiceError(
            f"Where the Label Studio of project {project.id or '?'} is, is not known.",
            "Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, or connect the backend in the project first.",
        )
    return LabelStudioClient(url, key, timeout_s=settings.label_studio_timeout_s)


def project_of(projects: Projects, project_id: str) -> Project:
    """The newest /setup of a project, by its id; an empty project when there was none."""
    records = [project for project in projects.all() if project.id == project_id]
    return max(records, key=lambda project: project.seen_at, default=Project(key=project_id))


def update_connection(
    settings: Settings, client: LabelStudioClient, project_id: int, model: ServedModel, known_versions: Iterable[str]
) -> ConnectionUpdate:
    """Change the settings of a project that our backend needs.

    The title always; the order of tasks, smart tools and webhook only when the backend was just connected, so that
    a person's later choices are kept.
    """
    backends = client.list_backends(project_id)
    our_backends = backends if len(backends) == 1 else [backend for backend in backends if is_ours(backend)]
    if not our_backends:
        return ConnectionUpdate()
    is_first = is_first_connection(our_backends, known_versions)
    project = client.get_project(project_id)
    changes = connection_changes(settings, client, project, our_backends, client.list_webhooks(project_id), model)
    title, messages = "", []
    for change in changes:
        if change.repair is not None and (is_first or change.kind == "title"):
            change.repair()
            messages.append(change.message)
            title = change.title or title
            log.info("project %d: set %s", project_id, change.message)
    if is_first:
        show_columns(client, project_id)
        messages.append("columns for score and version of predictions")
    return ConnectionUpdate(True, is_first, title, str(project.get("title", "")), tuple(messages))


def show_columns(client: LabelStudioClient, project_id: int) -> None:
    """Show the version and the score of predictions in the data manager's first tab."""
    view = next(iter(client.list_views(project_id)), {})
    data = dict(view.get("data") or {"title": "Default", "type": "list", "target": "tasks"})
    hidden = data.get("hiddenColumns") or {"explore": HIDDEN_COLUMNS, "labeling": HIDDEN_COLUMNS}
    hidden_columns = [name for name in hidden.get("explore", ()) if name not in SHOWN_COLUMNS]
    data["hiddenColumns"] = {**hidden, "explore": hidden_columns}
    client.save_view(project_id, data, view.get("id"))


def remove_notices(client: LabelStudioClient, project_id: int) -> None:
    """Remove the empty predictions that only said why nothing was outlined."""
    versions = {prediction.get("model_version") for prediction in client.list_predictions(project_id=project_id)}
    for version in filter(is_notice, versions):
        client.delete_predictions(project_id, str(version))


@dataclass(frozen=True)
class LabelStudioProject:
    """The learner's access to projects' Label Studio; tests give doubles."""

    settings: Settings
    connection: Redis

    def count_new(self, project: str, newest_at: str) -> int:
        """Count annotations that are newer than an ISO time."""
        return count_new_annotations(self._client(project), int(project), newest_at)

    def take_snapshot(self, project: str, folder: Path) -> Path:
        """Freeze the project's data as a snapshot; its directory below the folder."""
        # Not at the top: the worker that waits for a training needs no arrays.
        from backend.learning.snapshot import SnapshotSettings, take_snapshot

        fetcher = ImageSource(self.settings, Projects(self.connection)).fetcher(self._record(project))
        snapshot_settings = SnapshotSettings(
            choice=self.settings.annotators,
            holdout_share=self.settings.holdout_share,
            max_pixels=int(self.settings.max_image_megapixels * 1e6),
        )
        return take_snapshot(self._client(project), project, fetcher.fetch_bytes, folder, settings=snapshot_settings)

    def follow(self, project: str) -> ConnectionUpdate:
        """Make Label Studio show the serving version: first its title, then, after a change, new predictions."""
        client = self._client(project)
        record = self._record(project)
        model = served_model(self.settings, record.key)
        registry = registry_of(self.settings)
        versions = [info.name for info in registry.versions(project)] if registry else []
        base = read_served_model(self.settings.model).version
        update = update_connection(self.settings, client, int(project), model, [*versions, base, model.version])
        if update.title and not is_notice(update.title):
            remove_notices(client, int(project))
            if self.settings.repredict and (not update.is_first or model.version in versions):
                count = Repredictor(self.settings, self.connection).run(self._record(project), client, model.version)
                message = f"{count} task(s) without annotation are predicted anew"
                return replace(update, messages=(*update.messages, message))
        return update

    def _record(self, project: str) -> Project:
        return project_of(Projects(self.connection), project)

    def _client(self, project: str) -> LabelStudioClient:
        return connect(self.settings, self._record(project))
