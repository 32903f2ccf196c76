"""One evaluation of a running API: tasks out, answers in, scores beside the raw masks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from backend.devtools.served_evaluation import compare as gap
from backend.devtools.served_evaluation.client import Credentials, ServedApiClient, ServedError
from backend.devtools.served_evaluation.images import Addresses, ImageServer, InsideRequests
from backend.devtools.served_evaluation.parse import ServedResults, classes_of_labels
from integration.label_studio.label_config import parse_label_config
from training.datasets import AnySet, usable_samples
from training.evaluation.coco_format import TruthBuilder

Json = dict[str, Any]
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
    images_by: str = "request"
    image_host: str = "127.0.0.1"
    image_port: int = 0
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
    with ExitStack() as stack:
        api = ServedApiClient(asked.served, asked.credentials, asked.patience_s, asked.project)
        stack.callback(api.close)
        _check_version(api, version)
        addresses: Addresses = InsideRequests()
        if asked.images_by == "server":
            addresses = stack.enter_context(ImageServer(samples, asked.image_host, asked.image_port))
        run = hashlib.sha256(f"{xml}|{asked.project}|{time.time()}".encode()).hexdigest()[:8]
        for tasks in _requests(samples, addresses, config.value_key, run, asked.chunk, outcome.truth):
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


def _requests(
    samples: AnySet, addresses: Addresses, key: str, run: str, chunk: int, truth: TruthBuilder
) -> Iterator[list[Json]]:
    """Tasks by request. Their ids are no numbers, so that nothing is ever pushed into a Label Studio for them."""
    tasks: list[Json] = []
    bytes_in_request = 0
    for index, sample in usable_samples(samples):
        truth.add(sample)
        address = addresses.of(index, sample.image)
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
        "served": gap.measure_metrics(truth, objects.results, ratio),
        "notes": [],
    }
    if raw is not None:
        outcome["raw"] = gap.measure_metrics(truth, raw, ratio)
        outcome["raw_shown"] = gap.measure_metrics(truth, gap.detections_above(raw, asked.threshold), ratio)
        outcome["difference"] = gap.metric_differences(outcome["served"], outcome["raw_shown"])
        outcome["notes"] += gap.notes(objects.results, raw, asked.threshold)
    if objects.failed:
        outcome["notes"].append("images of failed tasks count as images without detections")
    return outcome
