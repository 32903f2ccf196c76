"""`transfiner evaluate --served URL`: what a running API returns for a set, beside the raw masks of the same model.

Three rows: all raw detections, as `transfiner evaluate` measures them; of those only the ones with a score that was
asked for; and what was served. The last two show the same detections, so their difference is what outlines, label
configuration and transport cost. Images go inside the requests, as PNG, so that the model sees the very same pixels.

An answer may be `{"results": []}`: deferred. Label Studio is then sent the predictions later; we are no Label Studio,
so we ask again. Nothing is computed twice: the API knows each task by all that its prediction depends on.
"""

from __future__ import annotations

import base64
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import requests
from pycocotools.coco import COCO
from requests.adapters import HTTPAdapter
from tabulate import tabulate
from urllib3.util import Retry

from backend.devtools.harness import label_config
from backend.devtools.load import as_png
from backend.queue.job_store import FINAL
from backend.settings import Settings, load_settings
from integration.regions.read import AnnotationError, regions_to_objects
from model.checkpoints.metadata import read_metadata
from training.datasets import AnySet, Sample, usable_samples
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.metrics.coco import IouKind, coco_ap

if TYPE_CHECKING:
    from backend.devtools.edit_plan import GoodOutline

Json = dict[str, Any]
Metrics = dict[str, dict[str, float]]
# Tasks and bytes of the images in one request; the API takes 32 MiB by default.
TASKS_A_REQUEST, MOST_REQUEST_BYTES = 8, 24 << 20
# While nothing is to be had, look again after this many s; give up when no task has ended for so long.
LOOK_AGAIN_S, PATIENCE_S = 1.0, 600.0
# Label Studio's own patience with one request, in s; the API answers or defers before it.
REQUEST_TIMEOUT_S = 120.0
MOST_JOBS = 1000
# Of a request that a busy or restarting server did not take; the waits between them double, 255 s in all.
TRIES = 9


_AP_NAMES = [(kind, name) for kind in ("mask", "boundary") for name in ("AP", "AP50", "AP75")]
_AP_COLUMNS = ("mask AP", "AP50", "AP75", "boundary AP", "AP50", "AP75")


class ServedError(click.ClickException):
    """The API cannot be asked, or answers what no API of ours would; says the fix."""


class ServedApiClient:
    """A running API, asked with the credentials of the settings, which are the API's own variables.

    Attributes:
        deferred: how many answers came as "later".
    """

    def __init__(self, url: str, settings: Settings | None = None, patience_s: float = PATIENCE_S) -> None:
        settings = settings or load_settings()
        self.url, self.patience_s, self.deferred = url.rstrip("/"), patience_s, 0
        if not self.url.startswith(("http://", "https://")):
            raise ServedError(f"--served is {self.url!r}; expected the address of an API, e.g. http://127.0.0.1:9090")
        self._session = requests.Session()
        # What passes (a restart, a busy queue server) is waited for.
        retry = Retry(TRIES, connect=0, status_forcelist=(502, 503, 504), allowed_methods=None, backoff_factor=0.5)
        self._session.mount(self.url, HTTPAdapter(max_retries=retry))
        if token := settings.api_token.get_secret_value():
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user := settings.basic_auth_user:
            self._session.auth = (user, settings.basic_auth_password.get_secret_value())

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def versions(self) -> list[str]:
        """The model versions that the API serves."""
        versions = self._json("GET", "/versions").get("versions")
        if not isinstance(versions, list):
            raise ServedError(f"{self.url}/versions has no list of versions; is it the address of a transfiner API?")
        return [str(version) for version in versions]

    def predict(self, tasks: Sequence[Json], xml: str) -> Json:
        """Request tasks and wait for the answer: `results` in their order, and perhaps `errors`.

        Raises:
            ServedError: no task has ended for `patience_s`, or the answer is invalid.
        """
        body = {"tasks": list(tasks), "project": "", "label_config": xml, "params": {"context": None}}
        ids = {str(task["id"]) for task in tasks}
        most_ended, since = 0, time.monotonic()
        while True:
            answer = self._json("POST", "/predict", body)
            results = answer.get("results")
            if isinstance(results, list) and len(results) == len(tasks):
                return answer
            if results != []:
                raise ServedError(
                    f"{self.url}/predict answered results = {results!r:.60} for {len(tasks)} tasks; expected as many "
                    "results, or none when it defers"
                )
            self.deferred += 1
            facts = self._json("GET", f"/jobs?limit={MOST_JOBS}")
            rows = [row for row in facts["jobs"] if row.get("task") in ids and row["state"] in FINAL]
            ended_count = len({row["task"] for row in rows})
            if ended_count > most_ended:
                most_ended, since = ended_count, time.monotonic()
            if time.monotonic() - since > self.patience_s:
                raise ServedError(
                    f"no task has ended for {self.patience_s:.0f} s: {ended_count} of {len(tasks)} have, "
                    f"{len(facts['workers'])} workers are alive, waiting: {facts['waiting']}; "
                    "start a worker with `transfiner worker`"
                )
            time.sleep(LOOK_AGAIN_S)

    def _json(self, method: str, path: str, body: Json | None = None) -> Json:
        try:
            response = self._session.request(
                method, self.url + path, json=body, timeout=REQUEST_TIMEOUT_S, allow_redirects=False
            )
            answer = response.json()
        except requests.JSONDecodeError as error:
            raise ServedError(f"{self.url}{path} answered no JSON; is it the address of a transfiner API?") from error
        except requests.RequestException as error:
            raise ServedError(
                f"{self.url} does not answer ({type(error).__name__}); is `transfiner serve` running there?"
            ) from error
        if response.status_code == 401:
            raise ServedError(
                f"{response.url} wants other credentials; set TRANSFINER_API_TOKEN, or TRANSFINER_BASIC_AUTH_USER and "
                "TRANSFINER_BASIC_AUTH_PASSWORD, as for the API"
            )
        if response.status_code != 200 or not isinstance(answer, dict):
            raise ServedError(f"{response.url} answered {response.status_code}: {answer!r:.300}; expected an object")
        return answer


@dataclass
class Served:
    """The answers of an API for a set.

    Attributes:
        truth: annotations of the set.
        results: COCO results.
        regions: how many were read. skipped: regions that are no object, by reason.
        failed: task ids by reason (with its hint).
        answers: size and regions of each prediction by image id.
        versions: model versions that answered, with how many tasks each.
    """

    truth: TruthBuilder
    results: list[Json] = field(default_factory=list)
    regions: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    answers: dict[int, tuple[tuple[int, int], list[Any]]] = field(default_factory=dict)
    deferred: int = 0
    seconds: float = 0.0

    def add(self, image_id: int, size_hw: tuple[int, int], prediction: Mapping[str, Any]) -> None:
        """Add the prediction of one task, for an image of this size."""
        self.versions[str(prediction.get("model_version"))] += 1
        regions = prediction.get("result") or []
        self.answers[image_id] = (size_hw, regions)
        self.regions += len(regions)
        try:
            reading = regions_to_objects(regions, width=size_hw[1], height=size_hw[0])
        except AnnotationError as error:
            self.skipped[str(error)] += len(regions)
            return
        self.skipped.update(reason for _, reason in reading.skipped)
        for item in reading.objects:
            if item.label not in self.truth.class_names:
                self.skipped[f"label {item.label!r} is no class of the set"] += 1
            elif item.score is None:
                self.skipped["it has no score"] += 1
            else:
                number = self.truth.class_names.index(item.label)
                self.results += coco_results(image_id, [item.mask_hw], [item.score], [number])


def predict_set(
    api: ServedApiClient, samples: AnySet, threshold: float, version: str | None, progress: Callable[[int], object]
) -> Served:
    """Send every image of a set to a running API and read its answers.

    Args:
        threshold: lowest score that is requested.
        version: that the API must serve (of the weights whose raw masks it is compared with); None: any.
        progress: called with how many more images are done.

    Raises:
        ServedError: the API does not answer, or serves another version.
    """
    versions = api.versions()
    if version is not None and version not in versions:
        raise ServedError(
            f"{api.url} serves {', '.join(versions) or 'no model'}, --weights is {version}; give the weights that it "
            "serves, or start it with TRANSFINER_MODEL set to these"
        )
    xml = label_config(samples.class_names, threshold)
    outcome = Served(TruthBuilder(samples.class_names))
    began_s = time.monotonic()
    for batch in _requests(samples, secrets.token_hex(4), outcome.truth):
        answer = api.predict([task for task, _ in batch], xml)
        errors = {str(error.get("task")): error for error in answer.get("errors") or []}
        for (task, image), prediction in zip(batch, answer["results"], strict=True):
            if isinstance(prediction, dict):
                outcome.add(image["id"], (image["height"], image["width"]), prediction)
            else:
                error = errors.get(task["id"], {"error": "the API gave no reason"})
                reason = f"{error.get('error')} {error.get('hint') or ''}".strip()
                outcome.failed.setdefault(reason, []).append(task["id"])
        progress(len(batch))
    outcome.deferred, outcome.seconds = api.deferred, time.monotonic() - began_s
    return outcome


def _requests(samples: AnySet, run: str, truth: TruthBuilder) -> Iterator[list[tuple[Json, Json]]]:
    """Yield the tasks of each request with their images' records.

    Their ids are no numbers, so that nothing is ever pushed into a Label Studio for them.
    """
    tasks: list[tuple[Json, Json]] = []
    bytes_in_request = 0
    for index, sample in usable_samples(samples):
        truth.add(sample)
        address = f"data:image/png;base64,{base64.b64encode(as_png(sample.image)).decode()}"
        if tasks and (len(tasks) >= TASKS_A_REQUEST or bytes_in_request + len(address) > MOST_REQUEST_BYTES):
            yield tasks
            tasks, bytes_in_request = [], 0
        tasks.append(({"id": f"evaluate-{run}-{index}", "data": {"image": address}}, truth.images[-1]))
        bytes_in_request += len(address)
    if tasks:
        yield tasks


def score_served(served: Served, raw: Sequence[Json] | None, *, threshold: float, ratio: float) -> Json:
    """The figures as JSON; `raw` are the model's own detections, None if there are no weights to compare with."""
    truth = served.truth.build()
    outcome: Json = {
        "images": len(served.truth.images),
        "versions": dict(served.versions),
        "threshold": threshold,
        "objects": len(served.results),
        "regions": served.regions,
        "deferred": served.deferred,
        "seconds": served.seconds,
        "failed": [{"reason": reason, "count": len(ids), "tasks": ids} for reason, ids in served.failed.items()],
        "skipped": dict(served.skipped),
        "served": measure_metrics(truth, served.results, ratio),
        "notes": ["images of failed tasks count as images without detections"] if served.failed else [],
    }
    if raw is not None:
        outcome["raw"] = measure_metrics(truth, raw, ratio)
        outcome["raw_shown"] = measure_metrics(truth, detections_above(raw, threshold), ratio)
        outcome["difference"] = {
            kind: {name: value - outcome["raw_shown"][kind][name] for name, value in numbers.items()}
            for kind, numbers in outcome["served"].items()
        }
        outcome["notes"] += notes(served.results, raw, threshold)
    return outcome


def measure_metrics(truth: COCO, results: Sequence[Json], ratio: float) -> Metrics:
    """Mask AP and boundary AP of COCO results, fractions."""
    kinds: tuple[tuple[str, IouKind], ...] = (("mask", "segm"), ("boundary", "boundary"))
    return {name: coco_ap(truth, list(results), kind, ratio=ratio) for name, kind in kinds}


def detections_above(results: Sequence[Json], threshold: float) -> list[Json]:
    """Keep results whose score reaches the threshold, as the API does."""
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
        f"{outcome['objects']} objects in {outcome['regions']} regions, {outcome['deferred']} answers deferred"
    ]
    titles = {
        "raw": "raw, all scores",
        "raw_shown": f"raw, from {outcome['threshold']:g} on",
        "served": "served",
        "difference": "served - raw",
    }
    metrics = {title: outcome[key] for key, title in titles.items() if key in outcome}
    lines.append(ap_table(metrics, signed=titles["difference"]))
    for failure in outcome["failed"]:
        lines.append(f"{failure['count']} failed: {failure['reason']}")
    lines += [f"{count} regions left out: {reason}" for reason, count in outcome["skipped"].items()]
    return "\n".join([*lines, *(f"Note: {note}" for note in outcome["notes"])])


def ap_table(metrics: Mapping[str, Metrics], *, signed: str = "") -> str:
    """Format AP in points, a line for each title; the one titled `signed` is a difference and has its sign."""
    rows = [
        (title, *(f"{100 * figures[kind][name]:{'+' if title == signed else ''}.2f}" for kind, name in _AP_NAMES))
        for title, figures in metrics.items()
    ]
    right = ("left", *["right"] * len(_AP_COLUMNS))
    return tabulate(rows, ("", *_AP_COLUMNS), "plain", colalign=right, disable_numparse=True)


def evaluate_served(
    url: str, samples: AnySet, name: str, weights: Path | None, threshold: float, *, ratio: float, **options: Any
) -> Json:
    """The outcome as JSON; see `score_served`.

    Args:
        weights: of the model whose raw masks are compared; None: only the served ones are scored.
        options: of `evaluate_checkpoint`.
    """
    served = _predict(url, samples, threshold, str(read_metadata(weights)["version"]) if weights else None)
    raw = _raw(samples, name, weights, ratio=ratio, **options) if weights else None
    outcome: Json = {"set": name, "weights": str(weights) if weights else None, "url": url}
    outcome |= score_served(served, raw, threshold=threshold, ratio=ratio)
    if served.failed and not served.versions:
        raise click.ClickException(f"every task failed: {'; '.join(served.failed)}")
    return outcome


def _predict(url: str, samples: AnySet, threshold: float, version: str | None) -> Served:
    """Predict every image through the API, with a progress bar."""
    with (
        closing(ServedApiClient(url)) as api,
        click.progressbar(length=len(samples), label=f"asking {url}", file=sys.stderr) as bar,
    ):
        return predict_set(api, samples, threshold, version, bar.update)


def _raw(samples: AnySet, name: str, weights: Path, **options: Any) -> list[Json]:
    """COCO results of the model's own masks."""
    from training.evaluation.run import evaluate_checkpoint

    results: list[Json] = []

    def observe(sample: Sample, instances: Any) -> None:
        masks = instances.pred_masks.numpy().astype(bool)
        results.extend(coco_results(sample.image_id, masks, instances.scores.numpy(), instances.pred_classes.numpy()))

    with click.progressbar(length=len(samples), label=f"raw masks of {name}", file=sys.stderr) as bar:
        evaluate_checkpoint(weights, samples, observe=observe, progress=lambda _: bar.update(1), **options)
    return results


def evaluate_served_edits(url: str, samples: AnySet, name: str, good: GoodOutline, shown_from: float) -> Json:
    """Measure the edits that correct the regions that a running API serves for a set."""
    from backend.devtools.simulated_edits import SERVED, Corrections, shown_regions

    answers = _predict(url, samples, shown_from, None).answers
    corrections = Corrections(good, samples.class_names)
    for _, sample in usable_samples(samples):
        (height, width), regions = answers.get(sample.image_id, (sample.image.shape[:2], []))
        corrections.add(sample, {SERVED: shown_regions(regions, height, width)})
    return corrections.outcome(name, url, shown_from)
