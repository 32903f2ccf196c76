"""Cityscapes instance AP, in memory; with boundaries as the Boundary IoU paper evaluates Cityscapes.

Source: cityscapesscripts 2.3.0, evalInstanceLevelSemanticLabeling. Unlike COCO: an overlap must be *above* the
threshold, the precision curve is integrated in steps over the distinct scores, instances under 100 px and groups need
not be found, and a detection nobody matches is forgiven if enough of it lies on void, groups or such instances.

Pixels of an instance image: 1000 * label + number for an instance, the label alone for a group and for stuff.

Cityscapes' files: ground truth as instance images, predictions as one text file and mask images an image.

A line of a prediction file is ``mask.png LABEL_ID SCORE``; the file's name begins as the ground truth's does
(``frankfurt_000000_000294``); every pixel of a mask other than 0 belongs to the object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.metrics.boundary import boundary_mask
from training.metrics.coco import IouKind
from training.metrics.coco_schema import RecordError, read_pixels
from training.metrics.matching import mean
from training.metrics.parallel import map_images_in_processes

LABELS = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}
LARGEST_LABEL = 33
# Labels that Cityscapes leaves out of its evaluation; numbered instances of these labels do not count as void.
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
LEAST_PX = 100
RATIO = 0.005  # boundary width / image diagonal


@dataclass(slots=True)
class _Truth:
    """One instance or group of one class on one image, and (score, overlap) of every detection that overlaps it."""

    is_required: bool
    overlaps: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Detection:
    """One detection: its score, its best overlap, and the share of it that lies on what is ignored."""

    score: float
    best_overlap: float
    ignored_share: float


class CityscapesEvaluation:
    """Collects images; `numbers` evaluates what was collected.

    Attributes:
        detection_count: detections of all images, those of other classes included.
    """

    def __init__(self, kind: IouKind = "segm", ratio: float = RATIO) -> None:
        self.kind, self.ratio, self.detection_count = kind, ratio, 0
        self._truths: dict[int, list[_Truth]] = {label: [] for label in LABELS.values()}
        self._detections: dict[int, list[_Detection]] = {label: [] for label in LABELS.values()}

    def add(
        self, instance_ids: np.ndarray, masks: Sequence[np.ndarray], labels: Sequence[int], scores: Sequence[float]
    ) -> None:
        """Add one image.

        Args:
            instance_ids: int H x W, the ground truth as in ``*_gtFine_instanceIds.png``.
            masks: bool H x W each, the detections.
            labels: Cityscapes label ids of the detections; others than the eight evaluated ones are left out.
        """
        self.detection_count += len(scores)
        areas = _counts(instance_ids)
        truths = {
            number: _Truth(number >= 1000 and areas[number] >= LEAST_PX)
            for number in areas
            if _label(number) in self._truths
        }
        for number, truth in truths.items():
            self._truths[_label(number)].append(truth)
        band = self._band(instance_ids, truths) if self.kind == "boundary" else None
        band_areas = _counts(band) if band is not None else {}
        for mask, label, score in zip(masks, labels, scores, strict=True):
            if label in self._detections and mask.any():
                overlaps = self._overlaps(instance_ids, band, mask, label, areas, band_areas)
                self._detections[label].append(_record(overlaps, truths, areas, instance_ids[mask], float(score)))

    def join(self, evaluation: CityscapesEvaluation) -> None:
        """Add the images of another evaluation."""
        self.detection_count += evaluation.detection_count
        for label in self._truths:
            self._truths[label] += evaluation._truths[label]
            self._detections[label] += evaluation._detections[label]

    def _band(self, instance_ids: np.ndarray, truths: dict[int, _Truth]) -> np.ndarray:
        """The boundaries of all truths, -1 elsewhere."""
        band = np.full(instance_ids.shape, -1, np.int64)
        for number in truths:
            band[boundary_mask(instance_ids == number, self.ratio)] = number
        return band

    def _overlaps(
        self,
        instance_ids: np.ndarray,
        band: np.ndarray | None,
        mask: np.ndarray,
        label: int,
        areas: dict[int, int],
        band_areas: dict[int, int],
    ) -> list[tuple[int, int, float]]:
        """List (truth, shared pixels, overlap) for each truth of a class that shares pixels with a detection."""
        shared_px = _counts(instance_ids[mask])
        size = int(np.count_nonzero(mask))
        overlaps = [
            (truth, common_px, common_px / (areas[truth] + size - common_px))
            for truth, common_px in shared_px.items()
            if _label(truth) == label
        ]
        if band is None:
            return overlaps
        edge = boundary_mask(mask, self.ratio)
        edges, length = _counts(band[edge]), int(np.count_nonzero(edge))
        return [
            (truth, common_px, min(iou, edges[truth] / (band_areas[truth] + length - edges[truth])))
            for truth, common_px, iou in overlaps
            if truth in edges
        ]

    def numbers(self) -> dict[str, float]:
        """AP, AP50, AP75 and ``AP/<class>``, ``AP50/<class>``: fractions, NaN for a class without truth."""
        values = np.array(
            [[self._ap(label, float(threshold)) for threshold in THRESHOLDS] for label in LABELS.values()]
        )
        result = {"AP": mean(values), "AP50": mean(values[:, 0]), "AP75": mean(values[:, 5])}
        result |= {f"AP/{name}": float(row.mean()) for name, row in zip(LABELS, values, strict=True)}
        return result | {f"AP50/{name}": float(row[0]) for name, row in zip(LABELS, values, strict=True)}

    def _ap(self, label: int, threshold: float) -> float:
        required = [truth for truth in self._truths[label] if truth.is_required]
        if not required:
            return float("nan")
        right, wrong, missed_count = [], [], 0
        for truth in required:
            scores = sorted(score for score, overlap in truth.overlaps if overlap > threshold)
            missed_count += not scores
            right += scores[-1:]
            wrong += scores[:-1]
        wrong += [
            detection.score
            for detection in self._detections[label]
            if detection.best_overlap <= threshold and detection.ignored_share <= threshold
        ]
        return _integrated(np.array(right), np.array(wrong), missed_count)


def _record(
    overlaps: list[tuple[int, int, float]],
    truths: dict[int, _Truth],
    areas: dict[int, int],
    ids_under_mask: np.ndarray,
    score: float,
) -> _Detection:
    """Add a detection to the truths it overlaps, and sum its pixels on ignored regions (a small group counts twice)."""
    ignored_px = int(np.isin(ids_under_mask, VOID).sum())
    for truth, shared_px, overlap in overlaps:
        truths[truth].overlaps.append((score, overlap))
        ignored_px += shared_px * ((truth < 1000) + (areas[truth] < LEAST_PX))
    best_overlap = max((overlap for _, _, overlap in overlaps), default=-1.0)
    return _Detection(score, best_overlap, ignored_px / len(ids_under_mask))


def _integrated(right: np.ndarray, wrong: np.ndarray, missed_count: int) -> float:
    """Area under precision over recall: each distinct score a point, half a step to either side, ending in (1, 0)."""
    thresholds = np.unique(np.concatenate((right, wrong)))
    if not len(thresholds):
        return 0.0
    hits = len(right) - np.searchsorted(np.sort(right), thresholds)
    reported_counts = hits + len(wrong) - np.searchsorted(np.sort(wrong), thresholds)
    precision = np.append(hits / reported_counts, 1.0)
    recall = np.append(hits / max(1, len(right) + missed_count), 0.0)
    padded_recall = np.concatenate((recall[:1], recall, [0.0]))
    return float(np.dot(precision, (padded_recall[:-2] - padded_recall[2:]) / 2))


def _label(instance_id: int) -> int:
    return instance_id if instance_id < 1000 else instance_id // 1000


def _counts(values: np.ndarray) -> dict[int, int]:
    unique_values, numbers = np.unique(values, return_counts=True)
    return dict(zip(unique_values.tolist(), numbers.tolist(), strict=True))


ENDING = "_gtFine_instanceIds.png"
Line = tuple[Path, int, float]


def cityscapes_ap(
    truths: Path,
    results: Path,
    kind: IouKind = "segm",
    *,
    ratio: float = RATIO,
    processes: int = 1,
    progress: Callable[[int, int], object] = max,
) -> tuple[dict[str, float], int, int]:
    """(numbers, images, detections) of a folder of predictions for a folder of ground truth, read image by image.

    Args:
        truths: searched for ``*_gtFine_instanceIds.png``, for instance ``gtFine/val``.

    Raises:
        RecordError: a file is missing or malformed; the message names it, and the line.
        ValueError: the kind is not defined for Cityscapes.
    """
    if kind not in ("segm", "boundary"):
        raise ValueError(f"Cityscapes compares masks: metric {kind!r} is not defined there; choose segm or boundary")
    images = sorted(truths.rglob(f"*{ENDING}"))
    if not images:
        raise RecordError(f"{truths}: holds no *{ENDING}; expected the folder of Cityscapes' gtFine or a split of it")
    texts = sorted(results.rglob("*.txt"))
    evaluation = CityscapesEvaluation(kind, ratio)
    pairs = [(path, _prediction_of(path, texts, results)) for path in images]
    for image_evaluation in map_images_in_processes(_evaluated, pairs, (results, kind, ratio), processes, progress):
        evaluation.join(image_evaluation)
    return evaluation.numbers(), len(images), evaluation.detection_count


def _evaluated(images: list[tuple[Path, Path]], results: Path, kind: IouKind, ratio: float) -> CityscapesEvaluation:
    """Evaluate some images, each a tuple (truth, prediction file)."""
    evaluation = CityscapesEvaluation(kind, ratio)
    for path, text in images:
        ids = read_instance_ids(path)
        lines = read_lines(text, results)
        masks = [read_mask(mask, ids.shape) for mask, _, _ in lines]
        evaluation.add(ids, masks, [label for _, label, _ in lines], [score for _, _, score in lines])
    return evaluation


def _prediction_of(truth: Path, texts: Sequence[Path], results: Path) -> Path:
    begin = truth.name.removesuffix(ENDING)
    fitting = [text for text in texts if text.name.startswith(begin)]
    if len(fitting) != 1:
        raise RecordError(f"{results}: holds {len(fitting)} files {begin}*.txt; expected exactly one for {truth.name}")
    return fitting[0]


def read_instance_ids(path: Path) -> np.ndarray:
    """int H x W of an instance image. Raises RecordError."""
    ids = read_pixels(path)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise RecordError(f"{path}: has shape {ids.shape}; expected one channel of instance ids")
    ids = ids.astype(np.int64)
    labels = np.unique(np.where(ids < 1000, ids, ids // 1000))
    if labels[0] < 0 or labels[-1] > LARGEST_LABEL:
        raise RecordError(f"{path}: has label {labels[-1]}; expected label ids 0 to {LARGEST_LABEL}")
    return ids


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """bool H x W of a prediction's mask. Raises RecordError."""
    mask = read_pixels(path, "L") != 0
    if mask.shape != shape:
        raise RecordError(f"{path}: is {mask.shape} pixels; expected {shape} as in the ground truth")
    return mask


def read_lines(path: Path, root: Path) -> list[Line]:
    """(mask file, label id, score) of each line of a prediction file; masks lie below `root`. Raises RecordError."""
    lines: list[Line] = []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read as text: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        place, parts = f"{path}:{number}", line.split(" ")
        if len(parts) != 3:
            raise RecordError(f"{place}: has {len(parts)} words; expected MASK.png LABEL_ID SCORE")
        mask = (path.parent / parts[0]).resolve()
        if Path(parts[0]).is_absolute() or not mask.is_relative_to(root.resolve()):
            raise RecordError(f"{place}: mask {parts[0]!r} lies outside {root}; expected a relative path inside")
        if any(mask == other_mask for other_mask, _, _ in lines):
            raise RecordError(f"{place}: mask {parts[0]!r} is listed twice")
        label, score = _number(parts[1], f"{place}: label"), _number(parts[2], f"{place}: score")
        if not -1 <= label <= LARGEST_LABEL:
            raise RecordError(f"{place}: label {parts[1]!r}; expected a Cityscapes label id up to {LARGEST_LABEL}")
        lines.append((mask, int(label), score))
    return lines


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecordError(f"{place}: {text!r}; expected a finite number")
    return value
