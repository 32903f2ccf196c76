"""Average precision as COCO and LVIS define it, for masks, boxes and boundaries: the reference tools' numbers.

Boundary AP is AP with the IoU replaced by min(mask IoU, boundary IoU). COCO records (already checked) become arrays in
the order in which COCO evaluates them. Candidate pairs with their IoU are the costly part, shared among processes:
pairs never cross images, so chunks of images joined in order are the pairs of one pass, number for number.

LVIS (source: the lvis package 0.5.3) annotates an image for some categories only: those on it, and those known to be
absent (`neg_category_ids`). Detections of others are left out; unmatched detections of categories whose objects were
not all drawn (`not_exhaustive_category_ids`) do not count. 300 detections an image over all categories. On an LVIS file
cut to COCO's categories this is PointRend's AP*.

A bootstrap over images gives the uncertainty of an AP: matching is done once, and a resample only changes the images'
weights. An image of weight w counts as w copies of it in COCO's evaluation, with all copies of a detection in one place
of the ranking. Weights of 1 give COCO's numbers. Differences of two networks are paired: both are measured on the same
draws, so what is easy or hard for both cancels.

Shapes: N images, T IoU thresholds, D detections of a category, B resamples, P of the D that match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pycocotools import mask as rle

from training.metrics.boundary import with_boundaries
from training.metrics.matching import (
    IOU_THRESHOLDS,
    RECALL_THRESHOLDS,
    Objects,
    Pairs,
    curves,
    match_detections,
    mean,
    overlapping_pairs,
    precisions,
    rank,
    recalls,
    tight_boxes,
)
from training.metrics.parallel import map_in_processes

_MOST = (1, 10, 100)


def coco_ap(
    dataset: dict[str, Any],
    detections: list[dict[str, Any]],
    kind: IouKind,
    *,
    ratio: float = 0.02,
    mask_areas: bool = False,
    processes: int = 1,
    progress: Progress = max,
) -> dict[str, float]:
    """COCO's 12 numbers and ``AP/<class>`` for every class: fractions in 0..1, NaN where nothing was to be found.

    AP over IoU .50:.95, AP50, AP75, by area (APs, APm, APl); AR1, AR10, AR100, ARs, ARm, ARl.

    Args:
        ratio: boundary width / image diagonal.
    """
    masks = kind != "bbox"
    truth = in_coco_order(truth_objects(dataset, masks=masks))
    results = in_coco_order(detection_objects(dataset, detections, masks=masks, mask_areas=mask_areas), limit=_MOST[-1])
    names = category_names(dataset)
    pairs = iou_pairs(truth, results, kind, ratio, processes=processes, progress=progress)
    outcome = curves(truth, results, match_detections(truth, results, pairs), len(names), _MOST)
    return precisions(outcome, names) | recalls(outcome, _MOST)


Record = dict[str, Any]


def compressed(segmentation: Any, height: int, width: int) -> Record:
    """Compressed RLE (counts as bytes) of polygons, run lengths or an RLE of an H x W image."""
    if isinstance(segmentation, list):
        polygon_rle: Record = rle.merge(rle.frPyObjects(segmentation, height, width))
        return polygon_rle
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts_rle: Record = rle.frPyObjects(segmentation, height, width)
        return counts_rle
    return {"size": segmentation["size"], "counts": counts.encode() if isinstance(counts, str) else counts}


def truth_objects(dataset: Record, *, masks: bool, federated: bool = False) -> Objects:
    """The annotations of a COCO (`federated`: LVIS) dataset; images and categories are numbered by rising id.

    Args:
        masks: read segmentations; else boxes.
        federated: LVIS's reading: no crowds, the field `ignore` counts, annotations of area 0 are not there.
    """
    records = [annotation for annotation in dataset["annotations"] if not federated or annotation["area"] > 0]
    sizes = {image["id"]: (image.get("height", 0), image.get("width", 0)) for image in dataset["images"]}
    crowd = _flags(records, "iscrowd") & (not federated)
    return Objects(
        **_places(dataset, records),
        area=np.array([record["area"] for record in records], float),
        score=np.zeros(len(records)),
        crowd=crowd,
        ignore=_flags(records, "ignore") & federated,
        masks=[compressed(record["segmentation"], *sizes[record["image_id"]]) for record in records] if masks else (),
        boxes=np.zeros((0, 4)) if masks else _boxes(records),
    )


def detection_objects(dataset: Record, results: Sequence[Record], *, masks: bool, mask_areas: bool = False) -> Objects:
    """COCO results as arrays.

    As in COCO's own tool, results that carry a box have its area, also when masks are compared: that changes APs, APm
    and APl. `mask_areas` takes the masks' areas instead, as detectron2 does by leaving the boxes out.
    """
    sizes = {image["id"]: (image.get("height", 0), image.get("width", 0)) for image in dataset["images"]}
    has_boxes = bool(results) and bool(results[0].get("bbox")) and not (masks and mask_areas)
    rles = [] if has_boxes and not masks else [_mask(result, sizes[result["image_id"]]) for result in results]
    boxes = _boxes(results) if has_boxes else tight_boxes(rles)
    area = boxes[:, 2] * boxes[:, 3] if has_boxes else _areas(rles)
    return Objects(
        **_places(dataset, results),
        area=area,
        score=np.array([result["score"] for result in results], float),
        crowd=np.zeros(len(results), bool),
        ignore=np.zeros(len(results), bool),
        masks=rles if masks else (),
        boxes=np.zeros((0, 4)) if masks else boxes,
    )


def _mask(record: Record, size: tuple[int, int]) -> Record:
    """Compressed mask of a result; without a segmentation that of its box, as in COCO's tool."""
    if "segmentation" in record:
        return compressed(record["segmentation"], *size)
    x, y, width, height = record["bbox"]
    corners = [x, y, x, y + height, x + width, y + height, x + width, y]
    return compressed([corners], *size)


def _areas(masks: list[Record]) -> np.ndarray:
    """Areas of masks, computed in parts: pycocotools' `area` counts its arguments in 8 bits."""
    parts = [rle.area(masks[start : start + 128]) for start in range(0, len(masks), 128)]
    return np.concatenate(parts).astype(float) if parts else np.zeros(0)


def _boxes(records: Sequence[Record]) -> np.ndarray:
    return np.array([record["bbox"] for record in records], float).reshape(-1, 4)


def _flags(records: Sequence[Record], name: str) -> np.ndarray:
    return np.array([bool(record.get(name, 0)) for record in records], bool)


def _places(dataset: Record, records: Sequence[Record]) -> dict[str, np.ndarray]:
    images = {number: index for index, number in enumerate(sorted(image["id"] for image in dataset["images"]))}
    kinds = {number: index for index, number in enumerate(sorted(category["id"] for category in dataset["categories"]))}
    return {
        "image": np.array([images[record["image_id"]] for record in records], np.int64),
        "category": np.array([kinds[record["category_id"]] for record in records], np.int64),
    }


def category_names(dataset: Record) -> list[str]:
    """Names by rising category id; where several share a name, with their ids."""
    categories = sorted(dataset["categories"], key=lambda category: category["id"])
    uses = Counter(category["name"] for category in categories)
    return [
        category["name"] if uses[category["name"]] == 1 else f"{category['name']} ({category['id']})"
        for category in categories
    ]


def in_coco_order(detections: Objects, *, limit: int | None = None) -> Objects:
    """Sorted by category, image and falling score (stable), at most `limit` of each category on each image."""
    sorted_detections = detections[np.lexsort((-detections.score, detections.image, detections.category))]
    if limit is None:
        return sorted_detections
    return sorted_detections[rank(sorted_detections) < limit]


IouKind = Literal["segm", "bbox", "boundary"]
Progress = Callable[[int, int], object]  # (images done, images in all)
# With fewer detections, starting processes takes longer than comparing.
WORTH_PROCESSES = 20_000
_CHUNKS = 16


def iou_pairs(
    truth: Objects, detections: Objects, kind: IouKind, ratio: float, *, processes: int = 1, progress: Progress = max
) -> Pairs:
    """Pairs of equal image and category with IoU >= 0.5, as `overlapping_pairs` and `with_boundaries` have them.

    Args:
        progress: called with (images done, images in all) after each chunk.
    """
    images = int(max(truth.image.max(initial=-1), detections.image.max(initial=-1))) + 1
    is_large = len(detections) >= WORTH_PROCESSES
    edges = np.linspace(0, images, (_CHUNKS if is_large else 1) + 1).astype(int)
    places = [
        (np.flatnonzero(_within(truth, low, high)), np.flatnonzero(_within(detections, low, high)))
        for low, high in pairwise(edges)
    ]
    work = [(truth[ours], detections[theirs], kind, ratio) for ours, theirs in places]
    parts = []
    for number, pairs in enumerate(map_in_processes(_compare, work, processes if is_large else 1)):
        ours, theirs = places[number]
        parts.append((theirs[pairs.detection], ours[pairs.truth], pairs.iou))
        progress(int(edges[number + 1]), images)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    return Pairs(*(column[order] for column in columns))


def _compare(truth: Objects, detections: Objects, kind: IouKind, ratio: float) -> Pairs:
    pairs = overlapping_pairs(truth, detections, boxes=kind == "bbox")
    return with_boundaries(pairs, truth, detections, ratio) if kind == "boundary" else pairs


def _within(objects: Objects, low: int, high: int) -> np.ndarray:
    inside: np.ndarray = (objects.image >= low) & (objects.image < high)
    return inside


MOST = 300
_FREQUENCIES = ("r", "c", "f")


def lvis_ap(
    dataset: dict[str, Any],
    detections: list[dict[str, Any]],
    kind: IouKind,
    *,
    ratio: float = 0.02,
    processes: int = 1,
    progress: Progress = max,
) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR300, ARs, ARm, ARl ``AP/<class>``; NaN where there is no truth.

    Args:
        detections: COCO results; those with boxes have the boxes' areas, as in the reference.
        ratio: boundary width / image diagonal.
    """
    masks = kind != "bbox"
    truth = in_coco_order(truth_objects(dataset, masks=masks, federated=True))
    results = detection_objects(dataset, detections, masks=masks)
    results = results[_best_of_each_image(results)]
    results = _judged(dataset, truth, results[results.area > 0])
    names = category_names(dataset)
    results = in_coco_order(results)
    pairs = iou_pairs(truth, results, kind, ratio, processes=processes, progress=progress)
    outcome = curves(truth, results, match_detections(truth, results, pairs), len(names), (MOST,))
    values = precisions(outcome, names)
    kinds = [kind.get("frequency") for kind in sorted(dataset["categories"], key=lambda category: category["id"])]
    for frequency in _FREQUENCIES:
        class_indices = [index for index, kind in enumerate(kinds) if kind == frequency]
        values[f"AP{frequency}"] = mean(outcome.precision[:, :, class_indices, 0])
    return values | recalls(outcome, (MOST,))


def _best_of_each_image(detections: Objects) -> np.ndarray:
    """Indices of the 300 best of each image, in the order of the file (equal scores: the earlier)."""
    order = np.lexsort((np.arange(len(detections)), -detections.score, detections.image))
    image = detections.image[order]
    rank = np.arange(len(detections)) - np.searchsorted(image, image)
    return np.sort(order[rank < MOST])


def _judged(dataset: dict[str, Any], truth: Objects, detections: Objects) -> Objects:
    """Drop detections of categories that their image is not annotated for; `ignore` those annotated incompletely."""
    images = sorted(dataset["images"], key=lambda image: image["id"])
    kinds = {number: index for index, number in enumerate(sorted(category["id"] for category in dataset["categories"]))}

    def keys(field: str) -> np.ndarray:
        places = [(n, kinds[k]) for n, image in enumerate(images) for k in image[field] if k in kinds]
        return _keys(*np.array(places, np.int64).reshape(-1, 2).T)

    of_detections = _keys(detections.image, detections.category)
    annotated_keys = np.concatenate((_keys(truth.image, truth.category), keys("neg_category_ids")))
    incomplete = np.isin(of_detections, keys("not_exhaustive_category_ids"))
    detections = replace(detections, ignore=incomplete)
    return detections[np.isin(of_detections, annotated_keys)]


def _keys(image: np.ndarray, category: np.ndarray) -> np.ndarray:
    return (image << 32) + category


MASK_KINDS = ("mask", "boundary")

_TINY = np.spacing(1)
# Numbers held at a time by `average_precision`: some tens of megabytes.
_NUMBERS_HELD = 4_000_000


def resampled_ap(
    dataset: dict[str, Any], results: Sequence[dict[str, Any]], weights: np.ndarray, *, ratio: float
) -> dict[str, np.ndarray]:
    """Compute "mask" and "boundary" AP in points under (B, N) weights of the images: (B,) each."""
    values = {}
    for kind in MASK_KINDS:
        class_matches = ranked_matches(dataset, results, boundary=kind == "boundary", ratio=ratio)
        by_class = np.stack([average_precision(matches, weights).mean(1) for matches in class_matches], axis=1)
        is_present = ~np.isnan(by_class)  # a resample may hold nothing of a class
        values[kind] = 100 * np.where(is_present, by_class, 0).sum(1) / np.maximum(is_present.sum(1), 1)
    return values


def image_weights(images: int, resamples: int, seed: int = 1) -> np.ndarray:
    """Weights of images, int (1 + B, N): every image once, then B bootstrap draws."""
    return np.concatenate((np.ones((1, images), np.int64), bootstrap_draws(images, resamples, seed)))


def bootstrap_draws(images: int, resamples: int, seed: int) -> np.ndarray:
    """Draw N of N images with replacement, B times: int B x N, how often each image was drawn."""
    if not images:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


@dataclass(frozen=True, slots=True)
class RankedMatches:
    """Detections of one category by falling score.

    Attributes:
        image: int64 D, index into the images.
        matched: bool T x D. ignored: bool T x D, neither right nor wrong.
        truth_counts: int64 N, truths to be found on each image.
    """

    image: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    truth_counts: np.ndarray


def ranked_matches(
    dataset: dict[str, Any], detections: Sequence[dict[str, Any]], *, boundary: bool, ratio: float = 0.02
) -> list[RankedMatches]:
    """Match COCO results to a COCO dataset by masks, or by boundaries of that ratio; one entry a category, by id."""
    truth = in_coco_order(truth_objects(dataset, masks=True))
    results = in_coco_order(detection_objects(dataset, detections, masks=True), limit=_MOST[-1])
    pairs = overlapping_pairs(truth, results, boxes=False)
    if boundary:
        pairs = with_boundaries(pairs, truth, results, ratio)
    matches = match_detections(truth, results, pairs)
    counts = ~(truth.outside_px()[0] | truth.ignore | truth.crowd)
    categories, images = len(dataset["categories"]), len(dataset["images"])
    class_matches = []
    for category in range(categories):
        indices = np.flatnonzero(results.category == category)
        order = indices[np.argsort(-results.score[indices], kind="stable")]
        truth_counts = np.bincount(truth.image[counts & (truth.category == category)], minlength=images)
        class_matches.append(
            RankedMatches(
                results.image[order], matches.matched[0][:, order], matches.ignored[0][:, order], truth_counts
            )
        )
    return class_matches


def average_precision(matches: RankedMatches, weights: np.ndarray) -> np.ndarray:
    """Average precision over 101 recalls, B x T; NaN where a resample holds no truth.

    Args:
        weights: int B x N, how often each image was drawn.
    """
    weights = np.asarray(weights, np.int64)
    step = max(1, _NUMBERS_HELD // max(1, len(matches.image)))
    parts = [_weighed(matches, weights[start : start + step]) for start in range(0, len(weights), step)]
    return np.concatenate(parts) if parts else np.zeros((0, len(IOU_THRESHOLDS)))


def _weighed(matches: RankedMatches, weights: np.ndarray) -> np.ndarray:
    truth_counts = weights @ matches.truth_counts
    draws = weights[:, matches.image]  # B x D
    result = np.full((len(weights), len(IOU_THRESHOLDS)), np.nan)
    has_truth = truth_counts > 0
    for threshold in range(len(IOU_THRESHOLDS)):
        is_counted = ~matches.ignored[threshold]
        right = np.flatnonzero(matches.matched[threshold] & is_counted)
        # Precision peaks at right detections; the wrong ones between them need no column.
        hits = np.cumsum(draws[:, right], axis=1)
        reported = np.cumsum(draws * is_counted, axis=1)[:, right]
        result[has_truth, threshold] = _mean_precision(hits[has_truth], reported[has_truth], truth_counts[has_truth])
    return result


def _mean_precision(hits: np.ndarray, reported: np.ndarray, truth_counts: np.ndarray) -> np.ndarray:
    """Mean precision (B) from right detections (B x P) and all detections (B x P) up to each place, and truths (B)."""
    if not len(truth_counts) or not hits.shape[1]:
        return np.zeros(len(truth_counts))
    precision = hits / (reported + _TINY)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall_counts = np.searchsorted(RECALL_THRESHOLDS, hits / truth_counts[:, None], side="right")
    new_counts = np.diff(recall_counts, axis=1, prepend=0)  # of the 101 recalls, those that each place reaches first
    means: np.ndarray = (envelope * new_counts).sum(1) / len(RECALL_THRESHOLDS)
    return means
