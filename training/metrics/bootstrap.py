"""Average precision of resampled images: matching is done once, and a resample only weighs images anew.

An image that a resample drew w times counts w times: as COCO's evaluation would count w copies of it, with all copies
of a detection in one place of the ranking. Drawing every image once gives COCO's numbers.

Differences of two networks are paired: both are measured on the same draws, so what is easy or hard for both cancels.

Shapes: N images, T IoU thresholds, D detections of a category, B resamples, P of the D that match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.metrics.boundary import with_boundaries
from training.metrics.coco import detection_objects, in_coco_order, truth_objects
from training.metrics.matching import IOU_THRESHOLDS, RECALL_THRESHOLDS, match_detections, overlapping_pairs

MASK_KINDS = ("mask", "boundary")

_TINY = np.spacing(1)
_MOST_PER_IMAGE = 100
# Numbers held at a time while weighing: some tens of megabytes.
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class RankedMatches:
    """Detections of one category by falling score.

    Attributes:
        image: int64 D, index into the images.
        matched: bool T x D. ignored: bool T x D, neither right nor wrong.
        wanted: int64 N, truths to be found on each image.
    """

    image: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    wanted: np.ndarray


def ranked_matches(
    dataset: dict[str, Any], detections: Sequence[dict[str, Any]], *, boundary: bool, ratio: float = 0.02
) -> list[RankedMatches]:
    """Match COCO results to a COCO dataset by masks, or by boundaries of that ratio; one entry a category, by id."""
    truth = in_coco_order(truth_objects(dataset, masks=True))
    results = in_coco_order(detection_objects(dataset, detections, masks=True), most=_MOST_PER_IMAGE)
    pairs = overlapping_pairs(truth, results, boxes=False)
    if boundary:
        pairs = with_boundaries(pairs, truth, results, ratio)
    matches = match_detections(truth, results, pairs)
    counts = ~(truth.outside_px()[0] | truth.ignore | truth.crowd)
    categories, images = len(dataset["categories"]), len(dataset["images"])
    ranked = []
    for category in range(categories):
        there = np.flatnonzero(results.category == category)
        order = there[np.argsort(-results.score[there], kind="stable")]
        wanted = np.bincount(truth.image[counts & (truth.category == category)], minlength=images)
        ranked.append(
            RankedMatches(results.image[order], matches.matched[0][:, order], matches.ignored[0][:, order], wanted)
        )
    return ranked


def average_precision(ranked: RankedMatches, weights: np.ndarray) -> np.ndarray:
    """B x T: precision averaged over 101 recalls; NaN where a resample holds nothing to be found.

    Args:
        weights: int B x N, how often each image was drawn.
    """
    weights = np.asarray(weights, np.int64)
    step = max(1, _CHUNK // max(1, len(ranked.image)))
    parts = [_weighed(ranked, weights[start : start + step]) for start in range(0, len(weights), step)]
    return np.concatenate(parts) if parts else np.zeros((0, len(IOU_THRESHOLDS)))


def bootstrap_draws(images: int, resamples: int, seed: int) -> np.ndarray:
    """int B x N: how often each of N images is drawn when N are drawn with replacement, B times over."""
    if not images:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def resampled_ap(
    dataset: dict[str, Any], results: Sequence[dict[str, Any]], weights: np.ndarray, *, ratio: float
) -> dict[str, np.ndarray]:
    """ "mask" and "boundary" AP in points under (B, N) weights of the images: (B,) each."""
    values = {}
    for kind in MASK_KINDS:
        ranked = ranked_matches(dataset, results, boundary=kind == "boundary", ratio=ratio)
        by_class = np.stack([average_precision(matches, weights).mean(1) for matches in ranked], axis=1)
        there = ~np.isnan(by_class)  # a resample may hold nothing of a class
        values[kind] = 100 * np.where(there, by_class, 0).sum(1) / np.maximum(there.sum(1), 1)
    return values


def image_weights(images: int, resamples: int, seed: int = 1) -> np.ndarray:
    """(1 + B, N): every image once, then B draws."""
    return np.concatenate((np.ones((1, images), np.int64), bootstrap_draws(images, resamples, seed)))


def _weighed(ranked: RankedMatches, weights: np.ndarray) -> np.ndarray:
    wanted = weights @ ranked.wanted
    drawn = weights[:, ranked.image]  # B x D
    result = np.full((len(weights), len(IOU_THRESHOLDS)), np.nan)
    there = wanted > 0
    for threshold in range(len(IOU_THRESHOLDS)):
        counted = ~ranked.ignored[threshold]
        right = np.flatnonzero(ranked.matched[threshold] & counted)
        # Precision peaks where a detection is right; between those only wrong ones come, so they need no place.
        hits = np.cumsum(drawn[:, right], axis=1)
        both = np.cumsum(drawn * counted, axis=1)[:, right]
        result[there, threshold] = _mean_precision(hits[there], both[there], wanted[there])
    return result


def _mean_precision(hits: np.ndarray, both: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """B, from B x P right ones and B x P right and wrong ones up to each place, and the B numbers to be found."""
    if not len(wanted) or not hits.shape[1]:
        return np.zeros(len(wanted))
    precision = hits / (both + _TINY)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALL_THRESHOLDS, hits / wanted[:, None], side="right")
    newly = np.diff(reached, axis=1, prepend=0)  # of the 101 recalls, those first reached at each place
    means: np.ndarray = (envelope * newly).sum(1) / len(RECALL_THRESHOLDS)
    return means
