"""One evaluation of a running API: tasks out, answers in, scores beside the raw masks of the same model.

Three rows: all raw detections, as `transfiner evaluate` measures them; of those only the ones with a score that was
asked for; and what was served. The last two show the same detections, so their difference is what outlines, label
configuration and transport cost. Images go inside the requests, as PNG, so that the model sees the very same pixels.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from pycocotools.coco import COCO

from backend.devtools.programs import as_png
from backend.devtools.served_evaluation.client import Credentials, ServedApiClient, ServedError
from integration.label_studio.label_config import LabelConfig, parse_label_config
from integration.regions.read import AnnotationError, regions_to_objects
from training.datasets import AnySet, usable_samples
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.metrics.coco import boundary_ap, mask_ap

Json = dict[str, Any]
Metrics = dict[str, dict[str, float]]
Progress = Callable[[int], object]
KINDS = {"polygon": "PolygonLabels", "brush": "BrushLabels", "rectangle": "RectangleLabels"}
# Of the images in one request; the API takes 64 MiB by default.
MOST_REQUEST_BYTES = 24 << 20


@dataclass(frozen=True)
class ServedOptions:
    """How to ask; the fields are the command's options."""

    served: str
    credentials: Credentials = field(default_factory=Credentials)
    regions: str = "polygon"
    tolerance_px: float | None = None
    threshold: float = 0.25
    label_config: Path | None = None
    project: str = ""
    chunk: int = 8
    patience_s: float = 600.0


def set_label_config(asked: ServedOptions, classes: Sequence[str]) -> str:
    """The given label configuration, or one with a label a class on a control of the kind asked for."""
    if asked.label_config is not None:
        return asked.label_config.read_text(encoding="utf-8")
    tag = KINDS[asked.regions]
    wishes = f' model_score_threshold="{asked.threshold:g}"'
    wishes += f' model_tolerance_px="{asked.tolerance_px:g}"' if asked.tolerance_px is not None else ""
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in classes)
    control = f'<{tag} name="regions" toName="image"{wishes}>{labels}</{tag}>'
    return f'<View><Image name="image" value="$image"/>{control}</View>'


class LabelError(ValueError):
    """The labels of a configuration cannot be distinguished as classes."""


def classes_of_labels(config: LabelConfig, classes: Sequence[str]) -> dict[str, int]:
    """Label -> number of the class that it stands for.

    Raises:
        LabelError: the configuration is unusable, no label is a class, or one label stands for several classes.
    """
    if config.reason is not None:
        raise LabelError(config.reason)
    match = config.match(classes)
    if match.message:
        raise LabelError(match.message)
    numbers: dict[str, int] = {}
    for name, targets in match.by_class.items():
        for label in {target.label.value for target in targets}:
            if label in numbers:
                raise LabelError(
                    f"label {label!r} stands for the classes {classes[numbers[label]]!r} and {name!r}, so an object "
                    "with it cannot be scored; use a configuration with a label for each class"
                )
            numbers[label] = classes.index(name)
    return numbers


@dataclass
class ServedResults:
    """What came back for a set.

    Attributes:
        labels: label -> class number.
        results: COCO results.
        regions: how many were read. skipped: regions that are no object, by reason.
        failed: task ids by reason (with its hint).
        answers: image id, size and regions of each prediction, in the order they came.
        versions: model versions that answered, with how many tasks each.
    """

    labels: Mapping[str, int]
    results: list[Json] = field(default_factory=list)
    regions: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[int, tuple[int, int], list[Any]]] = field(default_factory=list)

    def add(self, image_id: int, size_hw: tuple[int, int], prediction: Mapping[str, Any]) -> None:
        """Take in the prediction of one task, for an image of this size."""
        self.versions[str(prediction.get("model_version"))] += 1
        regions = prediction.get("result") or []
        self.answers.append((image_id, size_hw, regions))
        self.regions += len(regions)
        height, width = size_hw
        try:
            decoded = regions_to_objects(regions, width=width, height=height)
        except AnnotationError as error:
            self.skipped[str(error)] += len(regions)
            return
        self.skipped.update(reason for _, reason in decoded.skipped)
        for drawn in decoded.objects:
            if drawn.label not in self.labels:
                self.skipped[f"label {drawn.label!r} is no class of the set"] += 1
            elif drawn.score is None:
                self.skipped["it has no score"] += 1
            else:
                self.results += coco_results(image_id, [drawn.mask_hw], [drawn.score], [self.labels[drawn.label]])

    def fail(self, task: str, reason: str) -> None:
        """Note a task that failed; its image counts as one without detections."""
        self.failed.setdefault(reason, []).append(task)


@dataclass
class Served:
    """Answers of an API for a set, and the set's truth."""

    truth: TruthBuilder
    objects: ServedResults
    deferred: int = 0
    seconds: float = 0.0


def predict_set(asked: ServedOptions, samples: AnySet, *, version: str | None, progress: Progress) -> Served:
    """Send every image of a set to a running API and read what comes back.

    Args:
        version: that the API must serve (of the weights whose raw masks it is compared with); None: any.
        progress: called with how many more images are done.

    Raises:
        ServedError: the API cannot be asked, or serves another version.
        LabelError: the label configuration cannot be scored.
    """
    xml = set_label_config(asked, samples.class_names)
    config = parse_label_config(xml)
    objects = ServedResults(classes_of_labels(config, samples.class_names))
    outcome = Served(TruthBuilder(samples.class_names), objects)
    began_s = time.monotonic()
    with closing(ServedApiClient(asked.served, asked.credentials, asked.patience_s, asked.project)) as api:
        _check_version(api, version)
        run = hashlib.sha256(f"{xml}|{asked.project}|{time.time()}".encode()).hexdigest()[:8]
        for tasks in _requests(samples, config.value_key, run, asked.chunk, outcome.truth):
            _take(api, tasks, xml, outcome, progress)
        outcome.deferred = api.deferred
    outcome.seconds = time.monotonic() - began_s
    return outcome


def _check_version(api: ServedApiClient, version: str | None) -> None:
    known = api.versions()
    if version is not None and version not in known:
        raise ServedError(
            f"{api.url} serves {', '.join(known) or 'no model'}, --weights is {version}; give the weights that it "
            "serves, or start it with TRANSFINER_MODEL set to these"
        )


def _requests(samples: AnySet, key: str, run: str, chunk: int, truth: TruthBuilder) -> Iterator[list[Json]]:
    """Tasks by request. Their ids are no numbers, so that nothing is ever pushed into a Label Studio for them."""
    tasks: list[Json] = []
    bytes_in_request = 0
    for index, sample in usable_samples(samples):
        truth.add(sample)
        address = f"data:image/png;base64,{base64.b64encode(as_png(sample.image)).decode()}"
        if tasks and (len(tasks) >= chunk or bytes_in_request + len(address) > MOST_REQUEST_BYTES):
            yield tasks
            tasks, bytes_in_request = [], 0
        tasks.append({"id": f"evaluate-{run}-{index}", "data": {key: address}})
        bytes_in_request += len(address)
    if tasks:
        yield tasks


def _take(api: ServedApiClient, tasks: list[Json], xml: str, outcome: Served, progress: Progress) -> None:
    reported = 0

    def ended(count: int) -> None:
        nonlocal reported
        progress(count - reported)
        reported = count

    answer = api.predict(tasks, xml, ended)
    reasons = {
        str(error.get("task")): f"{error.get('error')} {error.get('hint') or ''}".strip()
        for error in answer.get("errors") or []
    }
    for task, prediction in zip(tasks, answer["results"], strict=True):
        image = outcome.truth.images[int(task["id"].rpartition("-")[2])]
        if isinstance(prediction, dict):
            outcome.objects.add(image["id"], (image["height"], image["width"]), prediction)
        else:
            outcome.objects.fail(task["id"], reasons.get(task["id"], "the API gave no reason"))
    progress(len(tasks) - reported)


def score_served(asked: ServedOptions, served: Served, *, raw: Sequence[Json] | None, ratio: float) -> Json:
    """The figures as JSON; `raw` are the model's own detections, None if there are no weights to compare with."""
    truth, objects = served.truth.build(), served.objects
    outcome: Json = {
        "url": asked.served,
        "images": len(served.truth.images),
        "versions": dict(objects.versions),
        "threshold": asked.threshold,
        "objects": len(objects.results),
        "regions": objects.regions,
        "deferred": served.deferred,
        "seconds": served.seconds,
        "failed": [{"reason": r, "count": len(ids), "tasks": ids} for r, ids in objects.failed.items()],
        "skipped": dict(objects.skipped),
        "served": measure_metrics(truth, objects.results, ratio),
        "notes": [],
    }
    if raw is not None:
        outcome["raw"] = measure_metrics(truth, raw, ratio)
        outcome["raw_shown"] = measure_metrics(truth, detections_above(raw, asked.threshold), ratio)
        outcome["difference"] = {
            kind: {name: value - outcome["raw_shown"][kind][name] for name, value in numbers.items()}
            for kind, numbers in outcome["served"].items()
        }
        outcome["notes"] += notes(objects.results, raw, asked.threshold)
    if objects.failed:
        outcome["notes"].append("images of failed tasks count as images without detections")
    return outcome


def measure_metrics(truth: COCO, results: Sequence[Json], ratio: float) -> Metrics:
    """Mask AP and boundary AP of COCO results, fractions."""
    return {"mask": mask_ap(truth, list(results)), "boundary": boundary_ap(truth, list(results), ratio=ratio)}


def detections_above(results: Sequence[Json], threshold: float) -> list[Json]:
    """Those whose score reaches the threshold, as the API chooses them."""
    return [result for result in results if result["score"] >= threshold]


def notes(served: Sequence[Json], raw: Sequence[Json], threshold: float) -> list[str]:
    """Sentences about the thresholds that a reader must know."""
    lowest = min((result["score"] for result in served), default=threshold)
    between = [result for result in detections_above(raw, threshold) if round(result["score"], 6) < lowest - 1e-6]
    if lowest > threshold and len(between) > 0.02 * len(raw):
        return [
            f"{len(between)} raw detections score from {threshold:g} up to {lowest:.3f}, the lowest score served: is "
            "the API's TRANSFINER_SCORE_FLOOR higher than --threshold?"
        ]
    return []


def comparison_text(outcome: Json) -> str:
    """The outcome for people."""
    lines = [
        f"{outcome['images']} images of {outcome['set']} through {outcome['url']} "
        f"({', '.join(outcome['versions']) or 'nothing answered'}), {outcome['seconds']:.0f} s, "
        f"{outcome['objects']} objects in {outcome['regions']} regions, {outcome['deferred']} answers deferred",
        f"{'':22}{'mask AP':>10}{'AP50':>8}{'AP75':>8}{'boundary AP':>14}{'AP50':>8}{'AP75':>8}",
    ]
    titles = {
        "raw": "raw, all scores",
        "raw_shown": f"raw, from {outcome['threshold']:g} on",
        "served": "served",
        "difference": "served - raw",
    }
    for key, title in titles.items():
        if key in outcome:
            lines.append(f"{title:22}" + _cells(outcome[key], "+" if key == "difference" else ""))
    for failure in outcome["failed"]:
        lines.append(f"{failure['count']} failed: {failure['reason']}")
    lines += [f"{count} regions left out: {reason}" for reason, count in outcome["skipped"].items()]
    return "\n".join([*lines, *(f"Note: {note}" for note in outcome["notes"])])


def _cells(metrics: Metrics, sign: str) -> str:
    widths = {"mask": (10, 8, 8), "boundary": (14, 8, 8)}
    digits = "+.2f" if sign else ".1f"
    return "".join(
        f"{100 * metrics[kind][name]:{digits}}".rjust(width)
        for kind, columns in widths.items()
        for name, width in zip(("AP", "AP50", "AP75"), columns, strict=True)
    )
