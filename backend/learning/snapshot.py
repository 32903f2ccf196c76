"""Freeze annotations of Label Studio and their images as a snapshot: which annotation counts, what was corrected.

A few images are fetched ahead, from Label Studio or from a folder beside an exported file. Nothing is left out in
silence: each left-out annotation, region and image is listed with task, annotation, region and reason in
corrections.json.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from backend.errors import ServiceError, UnsupportedConfigError
from integration.images.fetch import decode_data_uri, image_value
from integration.label_studio.client import LabelStudioClient
from integration.label_studio.label_config import LabelConfig, parse_label_config
from integration.label_studio.tasks import (
    AnnotatedTask,
    Annotation,
    Choice,
    LeftOut,
    chosen_annotations,
    distinct_tasks,
    newest_time,
    read_task,
    used_labels,
)
from integration.polygons.convert import outline_mask
from integration.regions.read import AnnotatedObject, Drawings, is_box, read_drawings, vote
from model.images import DEFAULT_BUDGET_BYTES, ImageError, MemoryBudget, decode_image
from training.snapshots.corrections import (
    Correction,
    Json,
    MostMoved,
    build_correction_report,
    correction_report_markdown,
    find_corrections,
    image_entry,
)
from training.snapshots.format import SnapshotError, SnapshotObject, SnapshotWriter, image_record, pixels_sha256
from training.snapshots.holdout import HOLDOUT_SHARE

#: (task, key of its data that holds the image) -> the file's bytes; `ImageFetcher.fetch_bytes` or `ImageFolder.fetch`.
Fetch = Callable[[Mapping[str, Any], str], bytes]
FETCH_THREADS = 4
#: Files of these formats are kept as they are; others become PNG.
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_MOST_INLINE_BYTES = 100_000_000
#: Label Studio puts eight hexadecimal digits and a dash before the name of an uploaded file.
_PREFIX = 9


@dataclass(frozen=True, slots=True, eq=False)
class TaskImage:
    """An image, and its file (bytes and suffix) when that can be stored as it is."""

    image_rgb: np.ndarray
    file: tuple[bytes, str] | None


def fetch_images(
    tasks: Sequence[AnnotatedTask], fetch: Fetch, value_key: str, max_pixels: int
) -> Iterator[tuple[AnnotatedTask, TaskImage | str]]:
    """Yield tasks in their order, each with its image or the reason why there is none; a few are fetched ahead."""

    budget = MemoryBudget(DEFAULT_BUDGET_BYTES)

    def get(task: AnnotatedTask) -> TaskImage | str:
        row = {"id": task.id, "data": task.data, "file_upload": task.file_name}
        try:
            return _decoded(fetch(row, value_key), task, max_pixels, budget)
        except (ImageError, ServiceError, OSError) as error:
            return f"its image cannot be had: {error}"

    waiting: deque[tuple[AnnotatedTask, Future[TaskImage | str]]] = deque()
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        for task in tasks:
            waiting.append((task, pool.submit(get, task)))
            if len(waiting) > 2 * FETCH_THREADS:
                first_task, future_image = waiting.popleft()
                yield first_task, future_image.result()
        for task, future_image in waiting:
            yield task, future_image.result()


def _decoded(content: bytes, task: AnnotatedTask, max_pixels: int, budget: MemoryBudget) -> TaskImage:
    image_rgb = decode_image(content, name=f"image of task {task.id}", max_pixels=max_pixels, budget=budget)
    with Image.open(io.BytesIO(content)) as picture:
        suffix = _SUFFIXES.get(picture.format or "")
    return TaskImage(image_rgb, (content, suffix) if suffix else None)


class ImageFolder:
    """Images of an exported file, found by name in a folder.

    A task's image may be named by its path below the folder, by its file name alone, or by the name that Label Studio
    gave the upload, with or without the prefix.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ServiceError(f"There is no folder {folder}.", "Give the folder with the images of the export.")
        self._folder = folder
        self._paths: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                names = {path.name, path.relative_to(folder).as_posix(), uploaded_name(path.name)}
                for name in names:
                    self._paths.setdefault(name, []).append(path)

    def fetch(self, task: Mapping[str, Any], value_key: str) -> bytes:
        """Read the file of a task. Raises ServiceError for none, or several of its name, and ImageError."""
        value = image_value(task, value_key)
        if value[:5].lower() == "data:":  # the task holds the image itself
            return decode_data_uri(value, _MOST_INLINE_BYTES)
        names = _names(value, str(task.get("file_upload") or ""))
        for name in names:
            paths = self._paths.get(name, [])
            if len(paths) > 1:
                raise ServiceError(
                    f"{len(paths)} files in {self._folder} are called {name!r}.", "Use paths, or other names."
                )
            if paths:
                return paths[0].read_bytes()
        raise ServiceError(f"{self._folder} has no file {' or '.join(map(repr, names))}.", "Copy it there.")


def uploaded_name(name: str) -> str:
    """The name that Label Studio gives an uploaded file after the prefix: ``Photo 1 (2).png`` is ``Photo_1_2.png``."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _names(value: str, file_upload: str) -> list[str]:
    """Possible names of the file, the most certain first."""
    # In an address `#` begins a fragment; in the key of a bucket or a path it is a letter.
    is_address = value.startswith(("http://", "https://"))
    parts = urlsplit(value.replace("\\", "/") if is_address else value.replace("\\", "/").replace("#", "%23"))
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0].lstrip("/")
    names = [path, *(path.split("/", depth)[-1] for depth in range(1, path.count("/") + 1)), file_upload]
    for name in (path.rpartition("/")[2], file_upload):
        if len(name) > _PREFIX and name[_PREFIX - 1] == "-" and set(name[: _PREFIX - 1]) <= set("0123456789abcdef"):
            names.append(name[_PREFIX:])
    return list(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """Settings of a snapshot.

    Attributes:
        choice: which of several annotations of a task count: the "latest", or the "agreement" of the annotators.
    """

    choice: Choice = "latest"
    holdout_share: float = HOLDOUT_SHARE
    max_pixels: int = 250_000_000


DEFAULT_SETTINGS = SnapshotSettings()
#: (images done, images in all)
Progress = Callable[[int, int], None]
#: Tasks with an annotation that was not skipped, so that a page of the API holds no other ones.
_MORE_THAN_NONE = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
ANNOTATED = json.dumps({"filters": {"conjunction": "and", "items": [_MORE_THAN_NONE]}})


@dataclass(frozen=True, slots=True)
class Labelling:
    """The labels and the image key of a project.

    Attributes:
        classes: labels that count, in the order of the categories.
        value_key: key of the task data that holds the image.
        config: the label config; None when it is not known.
    """

    classes: tuple[str, ...]
    value_key: str
    config: LabelConfig | None = None

    @classmethod
    def of_config(cls, xml: str) -> Labelling:
        """Read a label config. Raises UnsupportedConfigError when there is nothing in it to learn from."""
        config = parse_label_config(xml)
        if config.reason is not None:
            raise UnsupportedConfigError(f"No snapshot can be taken: {config.reason}", "Correct the label config.")
        return cls(config.labels, config.value_key, config)

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Labelling:
        """Derive it from exported tasks: every label that was used, and the data key that all tasks share.

        Raises:
            UnsupportedConfigError: nothing is labelled, or several keys may hold the image.
        """
        labels = sorted({label for row in rows for label in used_labels(row)})
        texts = [keys for row in rows if (keys := {*_texts(row.get("data"))})]  # others have no image: said later
        keys = set.intersection(*texts) if texts else set()
        key = "image" if "image" in keys else next(iter(keys), "") if len(keys) == 1 else ""
        if not labels or not key:
            raise UnsupportedConfigError(
                f"The export has {len(labels)} labels on outlines, and images may be under {sorted(keys)}; expected at "
                "least one label and one key.",
                "Give the label config with --label-config.",
            )
        return cls(tuple(labels), key)


def outline_px(mask_hw: np.ndarray) -> np.ndarray:
    """Vertices (N, 2) of a mask's outlines, simplified as those of a prediction."""
    rings = [ring for polygon in outline_mask(mask_hw, tolerance_px=1.0) for ring in (polygon.exterior, *polygon.holes)]
    return np.concatenate(rings) if rings else np.empty((0, 2))


def take_snapshot(
    client: LabelStudioClient,
    project_id: int | str,
    fetch: Fetch,
    out: Path,
    *,
    settings: SnapshotSettings = DEFAULT_SETTINGS,
    progress: Progress | None = None,
) -> Path:
    """Freeze the annotated tasks of a project."""
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
    tasks = distinct_tasks(read_task(row, predictions=predictions) for row in rows)
    annotated_tasks = sorted((task for task in tasks if task.annotations), key=_first_come, reverse=True)
    with SnapshotWriter(out, labelling.classes, project=project, holdout_share=settings.holdout_share) as writer:
        builder = SnapshotBuilder(writer, labelling, settings)
        for task in tasks:
            builder.left_out += task.left_out
        for number, (task, pixels) in enumerate(
            fetch_images(annotated_tasks, fetch, labelling.value_key, settings.max_pixels), 1
        ):
            builder.add(task, pixels)
            if progress:
                progress(number, len(annotated_tasks))
        return builder.finish([annotation for task in annotated_tasks for annotation in task.annotations], project)


def _first_come(task: AnnotatedTask) -> tuple[Any, ...]:
    """Sort key of tasks with the same image: one with ground truth counts, else the one annotated last."""
    return any(annotation.ground_truth for annotation in task.annotations), task.annotations[-1].updated_at, task.id


class SnapshotBuilder:
    """Builds a snapshot from its images; of equal images the first one added counts."""

    def __init__(self, writer: SnapshotWriter, labelling: Labelling, settings: SnapshotSettings) -> None:
        self._writer, self._labelling, self._settings = writer, labelling, settings
        self._task_of: dict[str, int] = {}
        self._entries: list[Json] = []
        self._annotation_ids: list[int] = []
        self._most_moved = MostMoved()
        self.left_out: list[LeftOut] = []

    def add(self, task: AnnotatedTask, pixels: TaskImage | str) -> None:
        """Add a task's image with its annotations that count."""
        if isinstance(pixels, str):
            self.left_out.append(LeftOut(task.id, None, "", pixels))
            return
        sha256 = pixels_sha256(pixels.image_rgb)
        if sha256 in self._task_of:
            clash = f"its image is also that of task {self._task_of[sha256]}, whose annotation is newer or ground truth"
            self.left_out.append(LeftOut(task.id, None, "", clash))
            return
        annotations = chosen_annotations(task.annotations, self._settings.choice)
        objects, disputed_objects, unreadable_count = self._vote(task, annotations, pixels.image_rgb.shape[:2])
        if unreadable_count:
            # Objects at unknown places would be taught as background.
            reason = f"{unreadable_count} of its outlines cannot be read, and where they lie is not known"
            self.left_out.append(LeftOut(task.id, annotations[-1].id, "", reason))
            return
        self._task_of[sha256] = task.id
        predicted_objects = self._shown(annotations[-1], pixels.image_rgb.shape[:2])
        # Disputed objects are matched, too: else the predicted ones that they came from would look deleted.
        corrections = find_corrections(predicted_objects, [*objects, *disputed_objects], outline_px)
        corrections = [
            correction
            for correction in corrections
            if correction.annotated is None or correction.annotated < len(objects)
        ]
        self._write(task, annotations, pixels, [*objects, *disputed_objects], corrections)
        self._describe(task, annotations, sha256, predicted_objects, corrections)
        for correction in corrections:
            source, target = correction.predicted, correction.annotated
            if predicted_objects and correction.vertices and source is not None and target is not None:
                before_hw, after_hw = predicted_objects[source].mask_hw, objects[target].mask_hw
                self._most_moved.add(pixels.image_rgb, before_hw, after_hw, correction, name=f"task {task.id}")

    def finish(self, annotations: Sequence[Annotation], project: str) -> Path:
        """Write the snapshot. `annotations`: all that were read; later only newer ones count as new."""
        left_out = [
            {
                "task": omission.task_id,
                "annotation": omission.annotation_id,
                "region": omission.region_id,
                "reason": omission.reason,
                "lost": omission.is_lost,
            }
            for omission in sorted(
                self.left_out, key=lambda omission: (omission.task_id, omission.annotation_id or 0, omission.region_id)
            )
        ]
        holdout_hashes = self._writer.holdout_hashes()
        for image in self._entries:
            image["part"] = "holdout" if image["sha256"] in holdout_hashes else "train"
        report = build_correction_report(self._entries, left_out)
        sheet = self._most_moved.sheet()
        config = self._labelling.config
        try:
            return self._writer.finish(
                newest_annotation_at=newest_time(annotations),
                annotation_ids=self._annotation_ids,
                extra={
                    "choice": self._settings.choice,
                    "left_out": dict(Counter(omission["reason"] for omission in left_out).most_common(50)),
                    "predicted_values": _predicted_values(config) if config else {},
                },
                report=report,
                report_markdown=correction_report_markdown(
                    report, f"Corrections{f' of project {project}' if project else ''}"
                ),
                pictures={"moved.png": sheet} if sheet else {},
            )
        except SnapshotError as error:
            reasons = "; ".join(f"task {omission['task']}: {omission['reason']}" for omission in left_out[:5])
            raise ServiceError(f"No snapshot: {error}", f"Left out: {reasons}" if reasons else "") from error

    def _vote(
        self, task: AnnotatedTask, annotations: Sequence[Annotation], size_hw: tuple[int, ...]
    ) -> tuple[list[AnnotatedObject], list[AnnotatedObject], int]:
        """The objects that count, those that are disputed or ignored, and the number of unreadable outlines."""
        drawings_of_annotators, unreadable_count, ignored_objects = [], 0, list[AnnotatedObject]()
        for annotation in annotations:
            drawings = self._read(annotation.result, size_hw)
            drawings_of_annotators.append(drawings.objects)
            unreadable_count += drawings.nowhere
            ignored_objects += drawings.ignored
            self.left_out += [LeftOut(task.id, annotation.id, region, reason) for region, reason in drawings.left_out]
            self.left_out += [LeftOut(task.id, annotation.id, *note, is_lost=False) for note in drawings.notes]
            if drawings.turned:
                unreadable_count += max(1, len(drawings.objects))
                self.left_out.append(LeftOut(task.id, annotation.id, "", drawings.turned))
        if len(drawings_of_annotators) == 1:
            return list(drawings_of_annotators[0]), self._in_every_class(ignored_objects), unreadable_count
        consensus = vote(drawings_of_annotators)
        for annotated_object in consensus.disputed:
            reason = f"{len(annotations)} annotators do not agree on it: neither trained on nor background"
            self.left_out.append(LeftOut(task.id, None, annotated_object.region_ids[0], reason))
        return list(consensus.objects), [*consensus.disputed, *self._in_every_class(ignored_objects)], unreadable_count

    def _in_every_class(self, ignored_objects: Sequence[AnnotatedObject]) -> list[AnnotatedObject]:
        """Repeat regions of no known class for each class, since judging ignores regions by class."""
        if not ignored_objects:
            return []
        union_hw = np.any([annotated_object.mask_hw for annotated_object in ignored_objects], axis=0)
        ids = tuple(region_id for annotated_object in ignored_objects for region_id in annotated_object.region_ids)
        merged_object = replace(ignored_objects[0], mask_hw=union_hw, region_ids=ids)
        return [replace(merged_object, label=label) for label in self._labelling.classes]

    def _shown(self, annotation: Annotation, size_hw: tuple[int, ...]) -> list[AnnotatedObject] | None:
        if annotation.prediction is None:
            return None
        return list(self._read(annotation.prediction.result, size_hw).objects)

    def _read(self, result: Sequence[Mapping[str, Any]], size_hw: tuple[int, ...]) -> Drawings:
        height, width = size_hw
        labelling = self._labelling
        return read_drawings(result, width=width, height=height, config=labelling.config, labels=labelling.classes)

    def _write(
        self,
        task: AnnotatedTask,
        annotations: Sequence[Annotation],
        pixels: TaskImage,
        objects: Sequence[AnnotatedObject],
        corrections: Sequence[Correction],
    ) -> None:
        by_number = {correction.annotated: correction for correction in corrections if correction.annotated is not None}
        rows = [_snapshot_object(instance, by_number.get(number)) for number, instance in enumerate(objects)]
        ids = [annotation.id for annotation in annotations]
        record = image_record(pixels.image_rgb, rows, self._labelling.classes, task_id=task.id, annotation_ids=ids)
        self._writer.add(record, pixels.image_rgb, pixels.file)
        self._annotation_ids += ids

    def _describe(
        self,
        task: AnnotatedTask,
        annotations: Sequence[Annotation],
        sha256: str,
        predicted_objects: Sequence[AnnotatedObject] | None,
        corrections: Sequence[Correction],
    ) -> None:
        prediction = annotations[-1].prediction
        seconds = [annotation.lead_time_s for annotation in annotations if annotation.lead_time_s is not None]
        entry = image_entry(
            corrections,
            sha256=sha256,
            task_id=task.id,
            annotation_ids=[annotation.id for annotation in annotations],
            seconds=sum(seconds) if seconds else None,
            shown=predicted_objects is not None,
            model_version=prediction.model_version if prediction else "",
            prediction_score=prediction.score if prediction else None,
        )
        self._entries.append(entry)


def _snapshot_object(source: AnnotatedObject, correction: Correction | None) -> SnapshotObject:
    snapshot_object = SnapshotObject(
        source.label, source.mask_hw, region_ids=source.region_ids, box_only=is_box(source), weight=0.0, disputed=True
    )
    if correction is None:
        return snapshot_object
    return replace(
        snapshot_object,
        correction=correction.kind,
        weight=correction.weight,
        moved_band_hw=correction.moved_band_hw,
        disputed=False,
    )


def _predicted_values(config: LabelConfig) -> dict[str, list[str]]:
    """Classes of a model for each label, where the label config names them: finetuning can keep their heads."""
    values: dict[str, list[str]] = {}
    for label in (label for control in config.controls for label in control.labels):
        if label.predicted_values:
            values.setdefault(label.value, []).extend(
                value for value in label.predicted_values if value not in values.get(label.value, [])
            )
    return values


def _texts(data: object) -> list[str]:
    return [key for key, value in data.items() if isinstance(value, str)] if isinstance(data, Mapping) else []
