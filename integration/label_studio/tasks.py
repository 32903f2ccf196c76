"""Label Studio's tasks as plain records: what people submitted, and the prediction that each annotation came from.

Rows may come from the task list of the API (`LabelStudioClient.iter_tasks`, whole predictions in them), from the JSON
export (ids of predictions, and a copy of one in `annotation.prediction`) or from an export snapshot. Measured on
1.23.2: `parent_prediction` names the prediction in all of them; the copy is filled only while the project's version
equals the prediction's; region ids survive submitting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NotRequired, TypedDict

from integration.label_studio.notice import is_notice


class Region(TypedDict):
    """A region as we write it; coordinates in `value` are percent of the upright image.

    Geometry and label are two regions with one id where the label config has a tag for each.
    """

    id: str
    type: str
    from_name: str
    to_name: str
    value: dict[str, Any]
    original_width: int
    original_height: int
    image_rotation: int
    score: float
    parentID: NotRequired[str]
    meta: NotRequired[dict[str, list[str]]]


class Prediction(TypedDict):
    """A prediction as Label Studio stores it; `precision` is for the queue."""

    result: list[Region]
    score: float | None
    model_version: str
    precision: NotRequired[str]


#: An entry of somebody's result: a JSON object that nobody has checked.
Entry = Mapping[str, Any]
#: Which of a task's annotations counts: the newest, or what most annotators agree on.
Choice = Literal["latest", "agreement"]


@dataclass(frozen=True, slots=True, eq=False)
class SourcePrediction:
    """A prediction as it was shown.

    Attributes:
        id: Label Studio's; None for a copy without one.
        score: of the whole image; None when there is none.
    """

    id: int | None
    model_version: str
    score: float | None
    result: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """A submitted annotation.

    Attributes:
        id: Label Studio's; below zero, by the place in its task, where it has none.
        annotator: id of the user, as text; "" when unknown.
        updated_at: when it was last submitted.
        lead_time_s: seconds that the annotator spent; None when unknown.
        result: its regions, relations and everything else.
        prediction: what it came from; None when it was drawn from scratch or that is not known any more.
    """

    id: int
    annotator: str
    updated_at: datetime
    lead_time_s: float | None
    ground_truth: bool
    result: tuple[Entry, ...]
    prediction: SourcePrediction | None


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Something of an export that was left out, with the place and the reason; nothing is left out without one.

    Attributes:
        is_lost: False where it is only read otherwise than it may have been meant.
    """

    task_id: int
    annotation_id: int | None
    region_id: str
    reason: str
    is_lost: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedTask:
    """A task with the annotations that count.

    Attributes:
        annotations: oldest first; () when nobody has submitted any.
        file_name: of the uploaded file; "" for other images.
    """

    id: int
    data: Mapping[str, Any]
    annotations: tuple[Annotation, ...]
    left_out: tuple[LeftOut, ...] = ()
    file_name: str = ""


SKIPPED = "skipped by the annotator"
#: The field of a region's value that tells its kind, the surest first.
_FIELDS = {
    "rle": "brush",
    "imageDataURL": "bitmask",
    "vertices": "vector",
    "points": "polygon",
    "radiusX": "ellipse",
    "width": "rectangle",
}


def rows_of_json_min(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tasks of a JSON-MIN export, which has one flat row an annotation, as rows of the whole export.

    JSON-MIN holds no ids of regions and no predictions: each part of an object becomes an object of its own, and what
    people corrected is not known.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, start=1):
        results = {name: value for name, value in row.items() if _is_result(value)}
        fields = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", *results}
        data = {name: value for name, value in row.items() if name not in fields}
        # Joined exports repeat ids for other tasks.
        task_key = json.dumps([row.get("id") or f"row {number}", data], sort_keys=True, default=str)
        task = tasks.setdefault(task_key, {"id": row.get("id"), "data": data, "annotations": []})
        if not results and row.get("annotation_id", number) is None:
            continue  # nobody has annotated it
        annotation = {name: row.get(name) for name in ("created_at", "updated_at", "lead_time")}
        annotation |= {"id": row.get("annotation_id", number), "completed_by": row.get("annotator")}
        task["annotations"].append(annotation | {"result": _entries_of_json_min(results)})
    return [*tasks.values()]


def _is_result(value: object) -> bool:
    """Whether a value is the result of a control: regions have the size of their image, lists of pages do not."""
    fields = ("original_width", "original_height")
    return any(_labels_field(entry) or any(name in entry for name in fields) for entry in _objects(value))


def _labels_field(value: Entry) -> str:
    return next((name for name in value if name.endswith("labels") or name == "choices"), "")


def _kind(value: Entry) -> str:
    return next((kind for name, kind in _FIELDS.items() if name in value), "")


def _entries_of_json_min(results: Mapping[str, list[Any]]) -> list[Any]:
    """The entries of an annotation; a geometry that also comes with labels is read from those."""
    entries: list[Any] = []
    values = [(name, value) for name, control_values in results.items() for value in control_values]
    geometries = [_geometry(value) for _, value in values if isinstance(value, Mapping) and _labels_field(value)]
    for number, (name, value) in enumerate(values, start=1):
        if not isinstance(value, Mapping):
            entries.append(value)
            continue
        labels, kind = _labels_field(value), _kind(value)
        if not labels and _geometry(value) in geometries:
            continue
        sizes = {side: value[side] for side in ("original_width", "original_height") if side in value}
        entry = {"id": f"{name}-{number}", "from_name": name, **sizes}
        if kind and labels in ("", "labels", "choices"):
            entries.append({**entry, "type": kind, "value": _geometry(value)})
        if labels:
            label_value = value if labels not in ("labels", "choices") else {labels: value[labels]}
            entries.append({**entry, "type": labels, "value": label_value})
    return entries


def _geometry(value: Entry) -> dict[str, Any]:
    """A region's value without its labels and the size of its image."""
    ignored_names = (_labels_field(value), "original_width", "original_height")
    return {name: inner for name, inner in value.items() if name not in ignored_names}


def read_task(row: Mapping[str, Any], *, predictions: Mapping[int, Mapping[str, Any]] | None = None) -> AnnotatedTask:
    """One task of an export.

    Args:
        row: a task with its annotations.
        predictions: by id, for exports that name predictions only by id.
    """
    task_id = _integer(row.get("id")) or 0
    by_id: dict[int | None, Entry] = dict((predictions or {}).items())
    by_id |= {
        _integer(prediction.get("id")): prediction
        for prediction in _objects(row.get("predictions"))
        if _integer(prediction.get("id")) is not None
    }
    usable_annotations: list[Annotation] = []
    left_out: list[LeftOut] = []
    annotations = row.get("annotations", row.get("completions"))  # their name in old exports
    for place, annotation in enumerate(_list(annotations), start=1):
        number = _integer(annotation.get("id")) if isinstance(annotation, Mapping) else None
        number = -place if number is None else number  # files of other tools have no ids, or texts
        reason = _unusable(annotation)
        if reason is None:
            usable_annotations.append(_annotation(annotation, number, by_id, task_id))
        else:
            left_out.append(LeftOut(task_id, number, "", reason))
    if annotations is not None and not isinstance(annotations, list):
        left_out.append(LeftOut(task_id, None, "", f"its annotations are {annotations!r:.40}, expected a list"))
    usable_annotations.sort(key=_age)
    data = row.get("data")
    return AnnotatedTask(
        task_id,
        data if isinstance(data, Mapping) else {},
        tuple(usable_annotations),
        tuple(left_out),
        str(row.get("file_upload") or ""),
    )


def distinct_tasks(tasks: Iterable[AnnotatedTask]) -> list[AnnotatedTask]:
    """Each task once, as it was read last.

    A task that moved to another page while they were read comes twice; joined exports repeat ids for other tasks.
    """
    return list({(task.id, json.dumps(task.data, sort_keys=True, default=str)): task for task in tasks}.values())


def chosen_annotations(annotations: Sequence[Annotation], choice: Choice = "latest") -> tuple[Annotation, ...]:
    """The annotations of a task that count, oldest first.

    Ground truth wins over everything. "latest": the newest one. "agreement": the newest of each annotator, for
    `integration.regions.read.vote`.
    """
    ground_truths = [annotation for annotation in annotations if annotation.ground_truth]
    by_age = sorted(ground_truths or annotations, key=_age)
    if ground_truths or choice == "latest":
        return tuple(by_age[-1:])
    newest = {annotation.annotator or f"#{annotation.id}": annotation for annotation in by_age}
    return tuple(sorted(newest.values(), key=_age))


def used_labels(row: Mapping[str, Any]) -> set[str]:
    """Labels on outlines in the annotations of an exported task, for exports without their label config."""
    regions = [
        region for annotation in _objects(row.get("annotations")) for region in _objects(annotation.get("result"))
    ]
    kinds = ("labels", *(f"{kind}labels" for kind in _FIELDS.values()))
    values = ((region.get("value") or {}).get(region.get("type")) for region in regions if region.get("type") in kinds)
    return {label for labels in values for label in _list(labels) if isinstance(label, str)}


def newest_time(annotations: Iterable[Annotation]) -> datetime | None:
    """When the newest of some annotations was submitted."""
    return max((annotation.updated_at for annotation in annotations), default=None)


def _age(annotation: Annotation) -> tuple[datetime, int]:
    return annotation.updated_at, annotation.id


def _unusable(entry: object) -> str | None:
    if not isinstance(entry, Mapping):
        return f"an annotation is {type(entry).__name__}, expected an object"
    if entry.get("was_cancelled"):
        return SKIPPED
    if not isinstance(entry.get("result"), list):
        return f"its result is {type(entry.get('result')).__name__}, expected a list of regions"
    bad_region = next((region for region in entry["result"] if not isinstance(region, Mapping)), entry)
    if bad_region is not entry:
        return f"a region of its result is {bad_region!r:.40}, expected an object"
    return None


def _annotation(entry: Mapping[str, Any], number: int, by_id: Mapping[int | None, Any], task_id: int) -> Annotation:
    result = tuple(_objects(entry["result"]))
    prediction = _source(entry, result, by_id, task_id)
    user = entry.get("completed_by")
    annotator = user.get("id") if isinstance(user, Mapping) else user
    return Annotation(
        id=number,
        annotator="" if annotator is None else str(annotator),
        updated_at=parse_time(entry.get("updated_at") or entry.get("created_at")),
        lead_time_s=_seconds(entry.get("lead_time")),
        ground_truth=bool(entry.get("ground_truth")),
        result=_close_again(result, prediction) if prediction else result,
        prediction=prediction,
    )


def _close_again(result: tuple[Entry, ...], prediction: SourcePrediction) -> tuple[Entry, ...]:
    """Close vectors that were predicted closed: without ``closable`` the editor opens every path (measured)."""

    def is_vector(region: Entry, *, closed: bool) -> bool:
        value = region.get("value")
        return isinstance(value, Mapping) and "vertices" in value and value.get("closed") is closed

    ids = {str(region.get("id")) for region in prediction.result if is_vector(region, closed=True)}
    return tuple(
        {**region, "value": {**region["value"], "closed": True}}
        if str(region.get("id")) in ids and is_vector(region, closed=False)
        else region
        for region in result
    )


def _source(
    entry: Mapping[str, Any], result: Sequence[Entry], by_id: Mapping[int | None, Any], task_id: int
) -> SourcePrediction | None:
    """The named prediction; else the copy; else the task's prediction with which most region ids are shared."""
    parent = entry.get("parent_prediction")
    parent = parent.get("id") if isinstance(parent, Mapping) else parent
    parent = _integer(parent)
    if parent in by_id:
        return _prediction(by_id[parent])
    copy = entry.get("prediction")
    if isinstance(copy, Mapping) and isinstance(copy.get("result"), list):
        return _prediction(copy)
    ids = {str(region["id"]) for region in result if region.get("id")}
    # These may be the predictions of a whole project: region ids are unique in a task only.
    task_predictions = [prediction for prediction in by_id.values() if prediction.get("task") in (None, task_id)]
    candidates = [
        (len(ids & _region_ids(prediction)), _integer(prediction.get("id")) or 0, prediction)
        for prediction in task_predictions
    ]
    count, _, closest_prediction = max(candidates, key=lambda item: item[:2], default=(0, 0, {}))
    return _prediction(closest_prediction) if count else None


def _prediction(entry: Mapping[str, Any]) -> SourcePrediction | None:
    """The prediction of an entry; None for a notice, which stands where there is no prediction."""
    if is_notice(entry.get("model_version")):
        return None
    return SourcePrediction(
        _integer(entry.get("id")),
        str(entry.get("model_version") or ""),
        _seconds(entry.get("score")),
        tuple(_objects(entry.get("result"))),
    )


def _region_ids(prediction: Mapping[str, Any]) -> set[str]:
    return {str(region["id"]) for region in _objects(prediction.get("result")) if region.get("id")}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [entry for entry in _list(value) if isinstance(entry, Mapping)]


def _integer(value: object) -> int | None:
    """A whole number; digits in a text are one."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _seconds(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value >= 0 else None  # type: ignore[arg-type, operator]


def parse_time(text: object) -> datetime:
    """Label Studio's time stamp; the earliest datetime for anything else, so that dated annotations win."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
