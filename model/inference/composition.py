"""Make the masks of one image agree with each other and with the image.

The network predicts each mask by itself, from features with a stride of several pixels: masks run over onto neighbours,
and their edges are ragged where the image's are not. Here

1. a place that several objects claim goes to one of them, to the smaller one sooner, since that lies in front;
2. colours typical of an object's certain places raise its probability, colours of its surroundings lower it;
3. each mask is smoothed, but not across edges of the image and most where the network is undecided (random walks with
   the network's probabilities as prior; Grady 2005).

Shapes: H, W the image at the size where this is done; h, w an object's window in it; R objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image
from scipy import ndimage

from model.instance import Instance, ProbabilityPatch, box_of, iou, sample_patch

#: Weaker detections stay as they are and take nothing away: they are hardly ever shown.
LEAST_SCORE = 0.5
#: So does one that a better scored one overlaps more than this (IoU): its double.
DOUBLE_IOU = 0.6
#: An object with 1/e of another one's area has this advantage, in logits, where both claim a place.
FRONT_WEIGHT = 0.5
#: Weight of the colours' log likelihood ratio, which is at most `MOST_COLOUR` either way; bins a channel.
COLOUR_WEIGHT, MOST_COLOUR, COLOUR_BINS = 4.0, 2.0, 28
#: Colours are not used where they would put more than this share of an object's certain places on the wrong side: most
#: objects of generated scenes are below, most of photographs above.
MOST_CONFUSION = 0.1
#: How much smoothness counts in an even area, and the colour difference (of 1) that divides it by e ** 0.5.
SMOOTHNESS, CONTRAST = 20.0, 0.035
#: Weight of the network's probability where it is undecided; where it is certain, 1 more.
LEAST_CONFIDENCE = 0.05
#: Steps of conjugate gradients: how many pixels a change can cross.
ITERATIONS = 30
#: Room around a mask in its window.
MARGIN_PX = 12
_LEAST_LINK = 1e-3
_LEAST_PROBABILITY = 1e-3
Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """The places that an object claims: logits (h, w) in a window of the image; outside of it none."""

    window: Window
    logits_hw: np.ndarray
    area_px: int

    @property
    def probabilities_hw(self) -> np.ndarray:
        """The claim as probabilities, float32 (h, w)."""
        return np.asarray(1 / (1 + np.exp(-self.logits_hw)))

    def with_probabilities(self, probabilities_hw: np.ndarray) -> Claim:
        """The same object with other probabilities (h, w)."""
        return dataclasses.replace(self, logits_hw=_logits(probabilities_hw))


def compose(image_rgb: np.ndarray, instances: Sequence[Instance], limit_hw: tuple[int, int]) -> list[Instance]:
    """Compose the masks of an image.

    Args:
        image_rgb: uint8, height x width x 3.
        instances: of this image, by falling score.
        limit_hw: larger images are made this small for it.

    Returns:
        The instances in their order, with new masks and probabilities. Those without probabilities, weak ones and
        doubles stay as they are, and so does an object of which nothing would be left.
    """
    numbers = _composed_numbers(instances)
    if not numbers:
        return list(instances)
    height, width = image_rgb.shape[:2]
    scale = min(1.0, limit_hw[0] / height, limit_hw[1] / width)
    size_hw = max(1, round(height * scale)), max(1, round(width * scale))
    if size_hw != (height, width):
        image_rgb = np.asarray(Image.fromarray(image_rgb).resize(size_hw[::-1], Image.Resampling.BOX))
    claims = compete([_claim(instances[number], size_hw) for number in numbers], FRONT_WEIGHT)
    claims = compete([_add_colours(claim, image_rgb) for claim in claims], 0.0)
    claims = compete(_smooth_claims(claims, image_rgb), 0.0)
    results = list(instances)
    for number, claim in zip(numbers, claims, strict=True):
        results[number] = _instance(instances[number], claim, size_hw)
    return results


def _composed_numbers(instances: Sequence[Instance]) -> list[int]:
    """Numbers of the instances that are composed."""
    numbers: list[int] = []
    for number, instance in enumerate(instances):
        if instance.score < LEAST_SCORE or instance.probabilities is None or not instance.mask_hw.any():
            continue
        if all(iou(instance.mask_hw, instances[better].mask_hw) <= DOUBLE_IOU for better in numbers):
            numbers.append(number)
    return numbers


def _claim(instance: Instance, size_hw: tuple[int, int]) -> Claim:
    """An instance in the image of size (H, W)."""
    assert instance.probabilities is not None
    factor = np.array(size_hw) / instance.mask_hw.shape
    left, top, right, bottom = np.array(box_of(instance.mask_hw)) * np.tile(factor[::-1], 2)
    start = np.maximum(np.floor([top, left]).astype(int) - MARGIN_PX, 0).tolist()
    end = np.minimum(np.ceil([bottom, right]).astype(int) + MARGIN_PX, size_hw).tolist()
    y_px, x_px = ((np.arange(a, b) + 0.5) / f for a, b, f in zip(start, end, factor, strict=True))
    values_hw = sample_patch(instance.probabilities.values, instance.probabilities.box_xyxy, y_px, x_px)
    window = slice(start[0], end[0]), slice(start[1], end[1])
    return Claim(window, _logits(values_hw), max(int(np.count_nonzero(values_hw >= 0.5)), 1))


def _logits(probabilities_hw: np.ndarray) -> np.ndarray:
    probabilities = np.clip(probabilities_hw, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.asarray(np.log(probabilities / (1 - probabilities)), dtype=np.float32)


def compete(claims: Sequence[Claim], front_weight: float) -> list[Claim]:
    """Let each place go to one object: of two claims each keeps its lead over the other.

    Args:
        claims: of R objects.
        front_weight: see `FRONT_WEIGHT`.
    """
    remainders = [claim.logits_hw.copy() for claim in claims]
    for i, j in combinations(range(len(claims)), 2):
        claim_i, claim_j = claims[i], claims[j]
        windows = _common(claim_i.window, claim_j.window), _common(claim_j.window, claim_i.window)
        logits_i, logits_j = claim_i.logits_hw[windows[0]], claim_j.logits_hw[windows[1]]
        if not logits_i.size:
            continue
        lead = logits_i - logits_j + front_weight * np.log(claim_j.area_px / claim_i.area_px)
        # Where the other claims nothing (its logit is negative), a claim keeps its own logit.
        np.minimum(remainders[i][windows[0]], np.maximum(lead, -logits_j), out=remainders[i][windows[0]])
        np.minimum(remainders[j][windows[1]], np.maximum(-lead, -logits_i), out=remainders[j][windows[1]])
    return [dataclasses.replace(claim, logits_hw=logits) for claim, logits in zip(claims, remainders, strict=True)]


def _common(window: Window, cover: Window) -> Window:
    """The part of a window that another one covers, counted in the first; empty where they do not meet."""
    parts = []
    for own_slice, cover_slice in zip(window, cover, strict=True):
        start, end = max(own_slice.start, cover_slice.start), min(own_slice.stop, cover_slice.stop)
        parts.append(slice(start - own_slice.start, max(end, start) - own_slice.start))
    return parts[0], parts[1]


def _add_colours(claim: Claim, image_rgb: np.ndarray) -> Claim:
    """Add the colours' evidence to a claim, if they tell the object from its surroundings in its window."""
    probabilities_hw = claim.probabilities_hw
    bins = image_rgb[claim.window].astype(np.int64) * COLOUR_BINS // 256
    bins_hw = (bins[..., 0] * COLOUR_BINS + bins[..., 1]) * COLOUR_BINS + bins[..., 2]
    certain_hw = np.clip(np.abs(2 * probabilities_hw - 1) - 0.3, 0, 1)
    inside_hw, outside_hw = certain_hw * (probabilities_hw > 0.5), certain_hw * (probabilities_hw <= 0.5)
    densities = []
    for weights_hw in (inside_hw, outside_hw):
        counts = np.bincount(bins_hw.ravel(), weights_hw.ravel(), COLOUR_BINS**3)
        counts = ndimage.gaussian_filter(counts.reshape((COLOUR_BINS,) * 3), 1.0)
        densities.append(counts / max(counts.sum(), 1.0) + 1e-5)
    ratio = np.clip(np.log(densities[0] / densities[1]), -MOST_COLOUR, MOST_COLOUR).astype(np.float32)
    ratio_hw = ratio.ravel()[bins_hw]
    confusions = [
        weights_hw[is_wrong_hw].sum() / max(weights_hw.sum(), 1.0)
        for weights_hw, is_wrong_hw in ((inside_hw, ratio_hw < 0), (outside_hw, ratio_hw > 0))
    ]
    if sum(confusions) / 2 > MOST_CONFUSION:
        return claim
    return dataclasses.replace(claim, logits_hw=claim.logits_hw + COLOUR_WEIGHT * ratio_hw)


def _smooth_claims(claims: Sequence[Claim], image_rgb: np.ndarray) -> list[Claim]:
    """Claims smoothed within the image's edges."""
    colours = image_rgb.astype(np.float32) / 255
    across, down = (
        SMOOTHNESS * np.exp((np.diff(colours, axis=axis) ** 2).sum(-1) / (-2 * CONTRAST**2)) + _LEAST_LINK
        for axis in (1, 0)
    )
    confidence = _confidence(claims, (colours.shape[0], colours.shape[1]))
    results = []
    for claim in claims:
        rows, columns = claim.window
        inner_columns, inner_rows = slice(columns.start, columns.stop - 1), slice(rows.start, rows.stop - 1)
        links = across[rows, inner_columns], down[inner_rows, columns]
        results.append(claim.with_probabilities(smooth(claim.probabilities_hw, confidence[claim.window], *links)))
    return results


def _confidence(claims: Sequence[Claim], size_hw: tuple[int, int]) -> np.ndarray:
    """How decided each place is, float32 (H, W): the lead of its best claim, or of none, plus `LEAST_CONFIDENCE`."""
    highest_hw, second_hw = np.zeros(size_hw, np.float32), np.zeros(size_hw, np.float32)
    for claim in claims:
        earlier_highest, values = highest_hw[claim.window], claim.probabilities_hw
        second_hw[claim.window] = np.maximum(second_hw[claim.window], np.minimum(values, earlier_highest))
        highest_hw[claim.window] = np.maximum(values, earlier_highest)
    lead = np.where(highest_hw >= 0.5, highest_hw - np.maximum(second_hw, 1 - highest_hw), 1 - 2 * highest_hw)
    return np.asarray(LEAST_CONFIDENCE + lead.clip(0, 1), dtype=np.float32)


def smooth(values_hw: np.ndarray, confidence_hw: np.ndarray, across_hw: np.ndarray, down_hw: np.ndarray) -> np.ndarray:
    """Minimise sum c (x - values)^2 + sum of links (x - neighbour's x)^2 over x, nearly; return x.

    By conjugate gradients with the diagonal as preconditioner.

    Args:
        values_hw: float32 (h, w). confidence_hw: c, positive.
        across_hw: links (h, w - 1) to the right. down_hw: links (h - 1, w) downwards.
    """
    diagonal = confidence_hw.copy()
    diagonal[:, 1:] += across_hw
    diagonal[:, :-1] += across_hw
    diagonal[1:] += down_hw
    diagonal[:-1] += down_hw

    def applied(x: np.ndarray) -> np.ndarray:
        result = confidence_hw * x
        flow = across_hw * np.diff(x, axis=1)
        result[:, 1:] += flow
        result[:, :-1] -= flow
        flow = down_hw * np.diff(x, axis=0)
        result[1:] += flow
        result[:-1] -= flow
        return np.asarray(result)

    x = values_hw.copy()
    residual = confidence_hw * values_hw - applied(x)
    direction = preconditioned = residual / diagonal
    size = float(np.vdot(residual, preconditioned))
    for _ in range(ITERATIONS):
        if size < 1e-9 * x.size:
            break
        applied_direction = applied(direction)
        step = size / float(np.vdot(direction, applied_direction))
        x += step * direction
        residual -= step * applied_direction
        preconditioned = residual / diagonal
        size, old_size = float(np.vdot(residual, preconditioned)), size
        direction = preconditioned + (size / old_size) * direction
    return x


def _instance(instance: Instance, claim: Claim, size_hw: tuple[int, int]) -> Instance:
    """The instance with the mask and the probabilities of its claim."""
    height, width = instance.mask_hw.shape
    y_scale, x_scale = height / size_hw[0], width / size_hw[1]
    rows, columns = claim.window
    box = (columns.start * x_scale, rows.start * y_scale, columns.stop * x_scale, rows.stop * y_scale)
    values_hw = claim.probabilities_hw
    start, end = np.floor([box[1], box[0]]).astype(int), np.ceil([box[3], box[2]]).astype(int)
    y_px, x_px = np.arange(start[0], end[0]) + 0.5, np.arange(start[1], end[1]) + 0.5
    mask_hw = np.zeros_like(instance.mask_hw)
    mask_hw[start[0] : end[0], start[1] : end[1]] = sample_patch(values_hw, box, y_px, x_px) >= 0.5
    if not mask_hw.any():
        return instance
    return dataclasses.replace(instance, mask_hw=mask_hw, probabilities=ProbabilityPatch(values_hw, box))
