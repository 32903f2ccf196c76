"""Annotations of Label Studio and their images joined into a snapshot with its report.

Nothing is lost in silence: every annotation, region and image that does not count is listed with task, annotation,
region and reason in corrections.json, and the round goes on without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from backend.learning.snapshot.builder import DEFAULT_SETTINGS, Labelling, SnapshotBuilder, SnapshotSettings
from backend.learning.snapshot.images import Fetch, fetch_images
from integration.label_studio.client import LabelStudioClient
from integration.label_studio.tasks import AnnotatedTask, read_task
from training.snapshots.writer import SnapshotWriter

__all__ = ["Fetch", "Labelling", "SnapshotSettings", "freeze_tasks", "take_snapshot"]

#: (images done, images in all)
Progress = Callable[[int, int], None]
#: Tasks with an annotation that was not skipped, so that a page of the API holds no other ones.
_MORE_THAN_NONE = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
ANNOTATED = json.dumps({"filters": {"conjunction": "and", "items": [_MORE_THAN_NONE]}})


def take_snapshot(
    client: LabelStudioClient,
    project_id: int | str,
    fetch: Fetch,
    out: Path,
    *,
    settings: SnapshotSettings = DEFAULT_SETTINGS,
    progress: Progress | None = None,
) -> Path:
    """Freeze the annotated tasks of a project.

    Args:
        client: of the project's Label Studio; tasks are read page by page.
        project_id: Label Studio's.
        fetch: gives the image of a task, `ImageFetcher.fetch_bytes` or `.fetch`.
        out: folder of snapshots.

    Returns:
        `out/<digest>`.

    Raises:
        ClientError: Label Studio refuses something; UnsupportedConfigError: see `Labelling`.
        ServiceError: not one annotated image could be had; the reasons are in the message.
    """
    labelling = Labelling.of_config(str(client.get_project(int(project_id)).get("label_config", "")))
    rows = client.iter_tasks(int(project_id), query=ANNOTATED)
    return freeze_tasks(rows, labelling, fetch, out, str(project_id), settings=settings, progress=progress)


def freeze_tasks(
    rows: Iterable[Mapping[str, Any]],
    labelling: Labelling,
    fetch: Fetch,
    out: Path,
    project: str = "",
    *,
    predictions: Mapping[int, Mapping[str, Any]] | None = None,
    settings: SnapshotSettings = DEFAULT_SETTINGS,
    progress: Progress | None = None,
) -> Path:
    """Freeze tasks of any export; see `take_snapshot` and `integration.label_studio.tasks.read_task`."""
    # A task that moved to another page while they were read comes twice.
    tasks = {task.id: task for task in (read_task(row, predictions=predictions) for row in rows)}
    annotated = sorted((task for task in tasks.values() if task.annotations), key=_first_come, reverse=True)
    with SnapshotWriter(out, labelling.classes, project=project, holdout_share=settings.holdout_share) as writer:
        freezing = SnapshotBuilder(writer, labelling, settings)
        for task in tasks.values():
            freezing.left_out += task.left_out
        for number, (task, pixels) in enumerate(
            fetch_images(annotated, fetch, labelling.value_key, settings.max_pixels), 1
        ):
            freezing.add(task, pixels)
            if progress:
                progress(number, len(annotated))
        return freezing.finish([annotation for task in annotated for annotation in task.annotations], project)


def _first_come(task: AnnotatedTask) -> tuple[Any, ...]:
    """Of two tasks with the same image, the one with ground truth counts, else the one annotated last."""
    return any(annotation.ground_truth for annotation in task.annotations), task.annotations[-1].updated_at, task.id
