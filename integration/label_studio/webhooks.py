"""Label Studio's webhook events as small dataclasses.

Events are hints, never the truth: they get lost when we are down, come twice after re-connecting, and anybody can
forge them. What they carry is ids; facts are read from Label Studio's API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_IDS = 100_000
# Ids have less than 19 digits.
MOST_ID = 10**18


class WebhookError(ValueError):
    """A body that is no event of Label Studio."""


@dataclass(frozen=True, slots=True)
class AnnotationRef:
    """An annotation that was made or changed.

    Attributes:
        id: of the annotation.
        task_id: of its task.
        was_cancelled: the annotator skipped the task.
        ground_truth: marked as ground truth.
    """

    id: int
    task_id: int
    was_cancelled: bool = False
    ground_truth: bool = False


@dataclass(frozen=True, slots=True)
class AnnotationsChanged:
    """ANNOTATION_CREATED, ANNOTATION_UPDATED, ANNOTATIONS_CREATED (the last one for many at once)."""

    action: str
    project_id: int
    annotations: tuple[AnnotationRef, ...]


@dataclass(frozen=True, slots=True)
class AnnotationsDeleted:
    """ANNOTATIONS_DELETED: ids only, Label Studio does not say of which tasks."""

    action: str
    project_id: int
    annotation_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TasksChanged:
    """TASKS_CREATED, TASKS_DELETED."""

    action: str
    project_id: int
    task_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProjectUpdated:
    """PROJECT_UPDATED: any change of the project, its label config included; /setup is not called for it."""

    action: str
    project_id: int
    label_config: str


@dataclass(frozen=True, slots=True)
class TrainingRequested:
    """START_TRAINING: the button, or every n-th annotation (before that annotation's own event)."""

    action: str
    project_id: int
    label_config: str


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of a later Label Studio, or one that does not concern us. Answer 200 and forget it."""

    action: str
    project_id: int | None = None


Event = AnnotationsChanged | AnnotationsDeleted | TasksChanged | ProjectUpdated | TrainingRequested | UnknownEvent


def parse_event(payload: object) -> Event:
    """Check and read the JSON body of POST /webhook.

    Raises:
        WebhookError: not an object, no action, or an action without what belongs to it.
    """
    if not isinstance(payload, Mapping):
        raise WebhookError(f"an event must be a JSON object, got {type(payload).__name__}")
    action = payload.get("action")
    if not isinstance(action, str) or not action:
        raise WebhookError(f"an event must name its action, got {action!r:.60}")
    if action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED"):
        annotations = tuple(_annotation(item, action) for item in _many(payload, "annotation", action))
        return AnnotationsChanged(action, _project_id(payload, action), annotations)
    if action == "ANNOTATIONS_DELETED":
        return AnnotationsDeleted(action, _project_id(payload, action), _ids(payload, "annotations", action))
    if action in ("TASKS_CREATED", "TASKS_DELETED"):
        return TasksChanged(action, _project_id(payload, action), _ids(payload, "tasks", action))
    if action == "PROJECT_UPDATED":
        return ProjectUpdated(action, _project_id(payload, action), _label_config(payload))
    if action == "START_TRAINING":
        return TrainingRequested(action, _project_id(payload, action), _label_config(payload))
    project = payload.get("project")
    return UnknownEvent(action, _id(project) if isinstance(project, Mapping) else None)


def _annotation(item: Mapping[str, Any], action: str) -> AnnotationRef:
    return AnnotationRef(
        _need_id(item, action, "annotation.id"),
        _need_id({"id": item.get("task")}, action, "annotation.task"),
        item.get("was_cancelled") is True,
        item.get("ground_truth") is True,
    )


def _project_id(payload: Mapping[str, Any], action: str) -> int:
    project = payload.get("project")
    return _need_id(project if isinstance(project, Mapping) else {}, action, "project.id")


def _label_config(payload: Mapping[str, Any]) -> str:
    return str(payload["project"].get("label_config") or "")


def _ids(payload: Mapping[str, Any], key: str, action: str) -> tuple[int, ...]:
    return tuple(_need_id(item, action, f"{key}[].id") for item in _many(payload, key, action))


def _many(payload: Mapping[str, Any], key: str, action: str) -> list[Mapping[str, Any]]:
    """The objects under a key: one, or a list of them (ANNOTATIONS_CREATED has lists under singular keys)."""
    value = payload.get(key)
    values = value if isinstance(value, list) else [value]
    items = [item for item in values if isinstance(item, Mapping)]
    if len(items) != len(values) or len(items) > MAX_IDS:
        raise WebhookError(f"{action}: {key} must be an object or a list of at most {MAX_IDS}, got {value!r:.60}")
    return items


def _need_id(item: Mapping[str, Any], action: str, name: str) -> int:
    number = _id(item)
    if number is None:
        raise WebhookError(f"{action}: {name} must be a whole number of 1 to 18 digits, got {item.get('id')!r:.60}")
    return number


def _id(item: Mapping[str, Any]) -> int | None:
    number = item.get("id")
    return number if isinstance(number, int) and not isinstance(number, bool) and 0 < number < MOST_ID else None
