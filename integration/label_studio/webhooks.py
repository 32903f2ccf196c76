"""Label Studio's webhook events: which project something happened in, and whether a training is asked for.

Events are hints, never the truth: they get lost when we are down, come twice after re-connecting, and anybody can
forge them. So facts are read from Label Studio's API. Events of a later Label Studio are no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Ids have less than 19 digits.
MOST_ID = 10**18
#: The button, or every n-th annotation (before that annotation's own event).
START_TRAINING = "START_TRAINING"
OF_PROJECTS = frozenset(
    {
        *("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"),
        *("TASKS_CREATED", "TASKS_DELETED", "PROJECT_UPDATED", START_TRAINING),
    }
)


class WebhookError(ValueError):
    """A body that is no event of Label Studio."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened; `project_id` is None only for actions that are not among `OF_PROJECTS`."""

    action: str
    project_id: int | None


def parse_event(payload: object) -> Event:
    """Check and read the JSON body of POST /webhook. Raises WebhookError: no object, no action, or no project."""
    if not isinstance(payload, Mapping):
        raise WebhookError(f"an event must be a JSON object, got {type(payload).__name__}")
    action, project = payload.get("action"), payload.get("project")
    if not isinstance(action, str) or not action:
        raise WebhookError(f"an event must name its action, got {action!r:.60}")
    number = project.get("id") if isinstance(project, Mapping) else None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < MOST_ID:
        if action in OF_PROJECTS:
            raise WebhookError(f"{action}: project.id must be a whole number of 1 to 18 digits, got {number!r:.60}")
        number = None
    return Event(action, number)
