"""When to train: derived from Label Studio's data and the newest snapshot, never counted in a process.

A webhook only says "look now". Whoever loses, doubles, delays or forges one changes nothing: the same look gives the
same answer, and once a snapshot holds the annotations there is nothing to train on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backend.settings import Settings
from integration.label_studio.client import LabelStudioClient

BUTTON, COMMAND, CORRECTIONS, SCHEDULE = "button", "command", "corrections", "schedule"
# A task and its annotation are saved one after the other.
CLOCK_MARGIN = timedelta(minutes=5)


@dataclass(frozen=True)
class TriggerState:
    """What a look at a project found.

    Attributes:
        new_annotations: newer than the newest snapshot (all of them when there is none); skipped ones do not count.
        failed_at: how many were new when the last round failed, -1 when it did not: the same data is not tried again
            and again without anybody asking.
    """

    new_annotations: int
    since_h: float | None = None
    failed_at: int = -1


def count_new_annotations(client: LabelStudioClient, project_id: int, newest_at: str) -> int:
    """Annotations that were made or changed after `newest_at` (ISO 8601 with an offset; "" for all there are)."""
    since = moment(newest_at)
    return sum(
        1
        for task in client.iter_tasks(project_id, query=_changed_since(since))
        for annotation in task.get("annotations") or ()
        if not annotation.get("was_cancelled") and moment(annotation.get("updated_at", "")) > since
    )


def training_reason(looked: TriggerState, settings: Settings) -> str:
    """The trigger that calls for a training now; "" for none. Nothing new never trains."""
    if looked.new_annotations <= max(0, looked.failed_at):
        return ""
    if settings.train_after and looked.new_annotations >= settings.train_after:
        return CORRECTIONS
    if settings.train_every_h and (looked.since_h is None or looked.since_h >= settings.train_every_h):
        return SCHEDULE
    return ""


def _changed_since(since: datetime) -> str:
    """The data manager's filter, so that a project of 100,000 tasks is not read every minute.

    Label Studio sets a task's own time whenever an annotation of it is saved, but not when many are made at once from
    predictions: those have a new time of completion.
    """
    if since == datetime.min.replace(tzinfo=UTC):
        annotated = "filter:tasks:total_annotations"
        items = [{"filter": annotated, "operator": "greater", "type": "Number", "value": 0}]
    else:
        value = (since - CLOCK_MARGIN).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        items = [
            {"filter": f"filter:tasks:{name}", "operator": "greater_or_equal", "type": "Datetime", "value": value}
            for name in ("updated_at", "completed_at")
        ]
    return json.dumps({"filters": {"conjunction": "or", "items": items}})


def newest_of(times: Iterable[str]) -> str:
    """The latest of some ISO times; "" for none."""
    return max((iso for iso in times if iso), key=moment, default="")


def moment(iso: str) -> datetime:
    """The time that an ISO text names; the beginning of time for none. Without an offset it is UTC."""
    if not iso:
        return datetime.min.replace(tzinfo=UTC)
    moment = datetime.fromisoformat(iso)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
