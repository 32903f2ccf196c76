"""BDD100K instance AP, in memory: COCO's averages over a matching of its own.

Source: bdd100k 1.0.1, eval/ins_seg. All detections of an image share one bitmask, the higher score on top, so none
overlap. IoU is plain, for crowds too; a detection takes the truth of highest IoU, ignored ones included, and is counted
wrong if that is below the threshold; a truth marked as crowd counts like any other and may be taken several times.

A bitmask is H x W x 4, uint8: category, attributes (1 ignored, 2 crowd), instance number in 16 bits (0: nothing).

BDD100K's files: bitmasks as RGBA PNG for truth and predictions, and one JSON file with the predictions' scores.

The JSON is a list of ``{"name": "image.jpg", "labels": [{"index": 1, "score": 0.9}, ...]}``; an index is the instance's
number in the image's bitmask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.metrics.coco import IouKind
from training.metrics.coco_schema import RecordError, is_integer, is_number, read_json, read_pixels
from training.metrics.matching import (
    AREA_RANGES_PX,
    IOU_THRESHOLDS,
    Matches,
    Objects,
    curves,
    precisions,
    rank,
    recalls,
)
from training.metrics.parallel import map_images_in_processes

CATEGORIES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")  # numbered from 1
IGNORED, CROWD = 1, 2
_MOST = (1, 10, 100)


@dataclass(frozen=True, slots=True)
class Bitmask:
    """One image's instances: `numbers` int H x W, 1 for the first, 0 for none; category, attributes, area of each."""

    numbers: np.ndarray
    category: np.ndarray
    attributes: np.ndarray
    area: np.ndarray


def parsed(bitmask: np.ndarray, order: Sequence[int] | None = None) -> tuple[Bitmask, np.ndarray]:
    """Parse a bitmask: its instances, by rising number or in the given order, and their numbers.

    Raises:
        ValueError: no H x W x 4 bytes, or an instance has pixels of two categories or attributes.
    """
    if bitmask.ndim != 3 or bitmask.shape[2] != 4 or bitmask.dtype != np.uint8:
        raise ValueError(f"a bitmask is an 8-bit RGBA image, this has shape {bitmask.shape}, {bitmask.dtype}")
    raw = (bitmask[..., 2].astype(np.int64) << 8) + bitmask[..., 3]
    raw_numbers, first_pixels, areas = np.unique(raw, return_index=True, return_counts=True)
    instance_numbers = np.array(
        [number for number in (raw_numbers if order is None else order) if number and number in raw_numbers], np.int64
    )
    places = np.searchsorted(raw_numbers, instance_numbers)
    table = np.zeros(int(raw_numbers[-1]) + 1, np.int64)
    table[instance_numbers] = np.arange(1, len(instance_numbers) + 1)
    category, attributes = (bitmask[..., layer].reshape(-1)[first_pixels[places]].astype(int) for layer in (0, 1))
    numbers = table[raw]
    for layer, values in ((0, category), (1, attributes)):
        is_mixed = (bitmask[..., layer] != np.append(0, values)[numbers]) & (numbers > 0)
        if is_mixed.any() and (order is None or layer == 0):
            raise ValueError(f"instance {raw[is_mixed][0]} has pixels of two {('categories', 'attributes')[layer]}")
    return Bitmask(numbers, category, attributes, areas[places].astype(float)), instance_numbers


def merged(masks: np.ndarray, categories: Sequence[int], scores: Sequence[float]) -> np.ndarray:
    """The bitmask of overlapping detections (bool N x H x W), number n + 1 for the n-th: higher scores on top."""
    bitmask = np.zeros((*masks.shape[1:], 4), np.uint8)
    for index in np.argsort(np.asarray(scores), kind="stable"):
        number = int(index) + 1
        bitmask[masks[index]] = (categories[index], 0, number >> 8, number & 255)
    return bitmask


class Bdd100kEvaluation:
    """Collects images, in the order of their names; `numbers` evaluates what was collected."""

    def __init__(self) -> None:
        self._images: list[tuple[Objects, Objects, Matches]] = []  # truth, detections and their matches

    def add(self, truth: np.ndarray, detected: np.ndarray, scores: dict[int, float]) -> None:
        """Add one image: two bitmasks, and the scores of the detections by their number in `detected`.

        Raises:
            ValueError: a bitmask is malformed, or their sizes differ.
        """
        if truth.shape != detected.shape:
            raise ValueError(f"the bitmasks differ in size: truth {truth.shape[:2]}, detections {detected.shape[:2]}")
        truth_bitmask, _ = parsed(truth)
        ranking = sorted(scores, key=lambda number: scores[number], reverse=True)
        detection_bitmask, numbers = parsed(detected, ranking)
        ours = _objects(truth_bitmask, np.zeros(len(truth_bitmask.area)), (truth_bitmask.attributes & IGNORED) > 0)
        theirs = _objects(
            detection_bitmask,
            np.array([scores[int(number)] for number in numbers], float),
            np.zeros(len(numbers), bool),
        )
        self._images.append(
            (
                ours,
                theirs,
                _matched(ours, theirs, _iou(detection_bitmask, truth_bitmask), (truth_bitmask.attributes & CROWD) > 0),
            )
        )

    def join(self, evaluation: Bdd100kEvaluation) -> None:
        """Add the images of another evaluation."""
        self._images += evaluation._images

    def numbers(self) -> dict[str, float]:
        """COCO's 12 numbers and ``AP/<class>``: fractions, NaN where there is no truth."""
        truth = _joined([objects for objects, _, _ in self._images])
        detections = _joined([results for _, results, _ in self._images])
        truth = truth[(truth.category >= 0) & (truth.category < len(CATEGORIES))]
        order = np.lexsort((-detections.score, detections.image, detections.category))
        order = order[(detections.category[order] >= 0) & (detections.category[order] < len(CATEGORIES))]
        order = order[rank(detections[order]) < _MOST[-1]]
        matches = Matches(
            np.concatenate([match.matched for *_, match in self._images], axis=2)[:, :, order],
            np.concatenate([match.ignored for *_, match in self._images], axis=2)[:, :, order],
        )
        outcome = curves(truth, detections[order], matches, len(CATEGORIES), _MOST)
        return precisions(outcome, CATEGORIES) | recalls(outcome, _MOST)


def _objects(bitmask: Bitmask, scores: np.ndarray, ignore: np.ndarray) -> Objects:
    nobody = np.zeros(len(bitmask.area), bool)
    return Objects(np.zeros(len(bitmask.area), np.int64), bitmask.category - 1, bitmask.area, scores, nobody, ignore)


def _joined(parts: list[Objects]) -> Objects:
    """Join the objects of all images; images are numbered in their order."""
    image = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    fields = ("category", "area", "score", "crowd", "ignore")
    return Objects(image, *(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def _iou(detections: Bitmask, truth: Bitmask) -> np.ndarray:
    """IoU of each detection with each truth, detections x truths."""
    columns = len(truth.area) + 1
    shared_px = np.bincount(
        (detections.numbers * columns + truth.numbers).ravel(), minlength=(len(detections.area) + 1) * columns
    ).reshape(-1, columns)[1:, 1:]
    return shared_px / (detections.area[:, None] + truth.area[None] - shared_px)


def _matched(truth: Objects, detections: Objects, iou: np.ndarray, crowd: np.ndarray) -> Matches:
    """Match detections, which come by falling score, by the rules in the module's docstring."""
    shape = (len(AREA_RANGES_PX), len(IOU_THRESHOLDS), len(detections))
    result = Matches(np.zeros(shape, bool), np.zeros(shape, bool))
    is_ignored = truth.outside_px() | truth.ignore
    for category in np.intersect1d(detections.category, truth.category):
        rows, columns = np.flatnonzero(detections.category == category), np.flatnonzero(truth.category == category)
        for level, threshold in enumerate(IOU_THRESHOLDS):
            free_iou = iou[np.ix_(rows, columns)].copy()
            for row, index in enumerate(rows):
                best_column = int(np.argmax(free_iou[row]))
                if free_iou[row, best_column] < threshold:
                    continue
                result.matched[:, level, index] = True
                result.ignored[:, level, index] = is_ignored[:, columns[best_column]]
                if not crowd[columns[best_column]]:
                    free_iou[:, best_column] = 0
    result.ignored[:] |= ~result.matched & detections.outside_px()[:, None]
    return result


def bdd100k_ap(
    truths: Path,
    results: Path,
    kind: IouKind = "segm",
    *,
    processes: int = 1,
    progress: Callable[[int, int], object] = max,
) -> tuple[dict[str, float], int, int]:
    """(numbers, images, detections) of a folder of predictions for a folder of ground truth, read image by image.

    Args:
        truths: with a bitmask each image, for instance ``labels/ins_seg/bitmasks/val``.
        results: with one ``.json`` of scores, and bitmasks of the same names at any depth.

    Raises:
        RecordError: a file is missing or malformed; the message names it, and the record.
        ValueError: the kind is not defined for BDD100K.
    """
    if kind != "segm":
        raise ValueError(f"BDD100K compares bitmasks: metric {kind!r} is not defined there; choose segm")
    images = sorted(truths.rglob("*.png"))
    if not images:
        raise RecordError(f"{truths}: holds no *.png; expected a folder of BDD100K bitmasks")
    lists = sorted(results.rglob("*.json"))
    if len(lists) != 1:
        raise RecordError(f"{results}: holds {len(lists)} .json files; expected exactly one, with the scores")
    scores = read_scores(lists[0])
    bitmasks = {path.name: path for path in results.rglob("*.png")}
    for path in images:
        if path.name not in bitmasks or path.name not in scores:
            source = results if path.name not in bitmasks else lists[0]
            raise RecordError(f"{source}: has nothing for {path.name}; expected every image of {truths}")
    evaluation = Bdd100kEvaluation()
    inputs = [(path, bitmasks[path.name], scores[path.name]) for path in images]
    for image_evaluation in map_images_in_processes(_evaluated, inputs, (), processes, progress):
        evaluation.join(image_evaluation)
    return evaluation.numbers(), len(images), sum(len(image_scores) for _, _, image_scores in inputs)


def _evaluated(images: list[tuple[Path, Path, dict[int, float]]]) -> Bdd100kEvaluation:
    """Evaluate some images, each a tuple (truth, bitmask, scores)."""
    evaluation = Bdd100kEvaluation()
    for path, bitmask, scores in images:
        try:
            evaluation.add(read_pixels(path), read_pixels(bitmask), scores)
        except ValueError as error:
            raise RecordError(f"{bitmask} (truth {path}): {error}") from error
    return evaluation


def read_scores(path: Path) -> dict[str, dict[int, float]]:
    """Read scores: image name ending in .png -> instance number -> score. Raises RecordError."""
    records = read_json(path)
    if not isinstance(records, list):
        raise RecordError(f"{path}: is no list; expected [{{name, labels}}, ...]")
    result: dict[str, dict[int, float]] = {}
    for index, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("name"), str):
            raise RecordError(f"{path}: [{index}].name: expected the name of an image")
        labels = record.get("labels") or []
        if not isinstance(labels, list):
            raise RecordError(f"{path}: [{index}].labels: expected a list")
        label_scores = [_label(label, f"{path}: [{index}].labels[{n}]") for n, label in enumerate(labels)]
        result[record["name"].replace(".jpg", ".png")] = dict(label_scores)
        if len(dict(label_scores)) != len(label_scores):
            raise RecordError(f"{path}: [{index}].labels: an index occurs twice")
    return result


def _label(record: Any, place: str) -> tuple[int, float]:
    if not isinstance(record, dict):
        raise RecordError(f"{place}: is {record!r}; expected an object with index and score")
    if not is_integer(record.get("index")) or not 0 < record["index"] < 1 << 16:
        raise RecordError(f"{place}.index: is {record.get('index')!r}; expected an integer from 1 to 65535")
    if not is_number(record.get("score")):
        raise RecordError(f"{place}.score: is {record.get('score')!r}; expected a finite number")
    return record["index"], float(record["score"])
