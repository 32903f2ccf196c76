"""What people changed: each object of an annotation beside the object of the prediction that it came from.

An object of the annotation is the predicted one with the same region id (Label Studio keeps ids when a person edits),
else the one whose mask it overlaps most. What is left of the prediction was deleted, what is left of the annotation
was added.

The work of a correction is counted in actions of the hand, one for a vertex dragged, clicked or removed:

    kept        0
    moved       m = max(1, vertices of the annotated outline off the predicted one, and the reverse: the larger count)
    added       3 + v      (choose the label, begin, close; v vertices clicked)
    deleted     2          (select, delete)
    relabelled  2 + (0 if the outline was kept, else m)
    a moved or relabelled outline costs at most 2 + 3 + v: nobody edits what is quicker to delete and draw again

The edit of an image is the sum over its objects. Vertices are those of outlines simplified as predictions are, so a
brush stroke and a polygon of the same mask cost the same; "off" is farther than `ACCEPTED_PX`.

Shapes: H, W mask size; N vertices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from model.instance import iou, iou_matrix
from training.metrics.boundary import OutlineDistance, compare_outlines, moved_band

Kind = Literal["kept", "moved", "relabelled", "added", "deleted"]
KINDS: tuple[Kind, ...] = ("kept", "moved", "relabelled", "added", "deleted")
#: Vertices (N, 2) of all rings of a bool H x W mask, as a person sees them.
Outliner = Callable[[np.ndarray], np.ndarray]


class Drawn(Protocol):
    """An object of a prediction or of an annotation.

    Its class; bool H x W with at least a pixel; ids of its parts in Label Studio, () when it has none; the score of the
    detection, None when a person drew it.
    """

    @property
    def label(self) -> str: ...
    @property
    def mask_hw(self) -> np.ndarray: ...
    @property
    def region_ids(self) -> tuple[str, ...]: ...
    @property
    def score(self) -> float | None: ...


#: An outline nowhere farther than this from the predicted one was kept; a vertex this close to its place is left alone.
KEPT_PX, ACCEPTED_PX = 1.0, 2.0
#: Least IoU of an annotated object with the predicted one that it came from, where ids do not tell.
SAME_IOU = 0.5
#: Width of the moved band, to either side of the moved stretch.
BAND_PX = 4.0
#: Actions besides the vertices, see above.
ACTIONS_ADDED, ACTIONS_DELETED, ACTIONS_RELABELLED = 3.0, 2.0, 2.0
#: In finetuning: of objects that people left as they were (the model knows those), of those that they changed or added,
#: and of those that no prediction was shown for.
WEIGHT_KEPT, WEIGHT_CORRECTED, WEIGHT_UNSEEN = 0.5, 2.0, 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """What became of one object.

    Attributes:
        kind: "relabelled" also when its outline was moved as well; `mean_px` tells.
        label: of the annotation; of the prediction for a deleted object.
        predicted_label: None for an added object.
        score: of the predicted object.
        annotated: its number in the annotation; None when deleted.
        predicted: its number in the prediction; None when added.
        iou: of the two masks; mean_px, max_px: distance of their outlines. 0 for added and deleted objects.
        vertices: moved, or drawn anew.
        cost: actions of the hand, see the module.
        weight: in finetuning.
        moved_band_hw: where the outline was moved; None when it was not.
    """

    kind: Kind
    label: str
    predicted_label: str | None = None
    score: float | None = None
    annotated: int | None = None
    predicted: int | None = None
    iou: float = 0.0
    mean_px: float = 0.0
    max_px: float = 0.0
    vertices: int = 0
    cost: float = 0.0
    weight: float = 0.0
    moved_band_hw: np.ndarray | None = None


def find_corrections(
    predicted: Sequence[Drawn] | None, annotated: Sequence[Drawn], outline_px: Outliner
) -> list[Correction]:
    """Compare the objects of one image.

    Args:
        predicted: what was shown; None when nothing was, or it is not known any more.

    Returns:
        One correction for each annotated object, in their order, then one for each deleted object.
    """
    shown = list(predicted or ())
    partner = match_objects(shown, annotated)
    corrections = []
    for number, drawn in enumerate(annotated):
        origin = partner.get(number)
        if origin is None:
            weight = WEIGHT_UNSEEN if predicted is None else WEIGHT_CORRECTED
            corrections.append(_added(number, drawn, outline_px, weight))
        else:
            corrections.append(_edited(number, drawn, origin, shown[origin], outline_px))
    taken = set(partner.values())
    return corrections + [_deleted(n, region) for n, region in enumerate(shown) if n not in taken]


def match_objects(predicted: Sequence[Drawn], annotated: Sequence[Drawn]) -> dict[int, int]:
    """Number of the predicted object for each annotated one that came from one: by region id first, by IoU second."""
    partner: dict[int, int] = {}
    shared = [
        (-len(set(a.region_ids) & set(p.region_ids)), n, k)
        for n, a in enumerate(annotated)
        for k, p in enumerate(predicted)
        if set(a.region_ids) & set(p.region_ids)
    ]
    for _, n, k in sorted(shared):
        if n not in partner and k not in partner.values():
            partner[n] = k
    left = [n for n in range(len(annotated)) if n not in partner]
    free = [k for k in range(len(predicted)) if k not in partner.values()]
    overlap = iou_matrix([annotated[n].mask_hw for n in left], [predicted[k].mask_hw for k in free])
    if overlap.size:
        # Of equal overlaps, the one with the same label.
        alike = np.array([[annotated[n].label == predicted[k].label for k in free] for n in left])
        overlap = np.where(overlap >= SAME_IOU, overlap + 1e-6 * alike, 0)
        for row, column in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[row, column] > 0:
                partner[left[row]] = free[column]
    return partner


def edit_cost(corrections: Sequence[Correction]) -> float:
    """Actions of the hand that an image took."""
    return float(sum(correction.cost for correction in corrections))


def _added(number: int, drawn: Drawn, outline_px: Outliner, weight: float) -> Correction:
    vertices = len(outline_px(drawn.mask_hw))
    cost = ACTIONS_ADDED + vertices
    return Correction("added", drawn.label, annotated=number, vertices=vertices, cost=cost, weight=weight)


def _deleted(number: int, shown: Drawn) -> Correction:
    return Correction("deleted", shown.label, shown.label, shown.score, predicted=number, cost=ACTIONS_DELETED)


def _edited(number: int, drawn: Drawn, origin: int, shown: Drawn, outline_px: Outliner) -> Correction:
    overlap, mean_px, max_px, vertices, band_hw, redrawn = 1.0, 0.0, 0.0, 0, None, 0.0
    if not np.array_equal(drawn.mask_hw, shown.mask_hw):
        compared = compare_outlines(drawn.mask_hw, shown.mask_hw, margin_px=int(BAND_PX) + 2)
        overlap, mean_px, max_px = iou(drawn.mask_hw, shown.mask_hw), compared.mean_px, compared.max_px
        if max_px > KEPT_PX:
            vertices, redrawn = _moved_vertices(drawn, shown, compared, outline_px)
            band_hw = moved_band(drawn.mask_hw, shown.mask_hw, compared, accepted_px=KEPT_PX, band_px=BAND_PX)
    relabelled = drawn.label != shown.label
    kind: Kind = "relabelled" if relabelled else "moved" if vertices else "kept"
    cost = ACTIONS_RELABELLED * relabelled + vertices
    return Correction(
        kind,
        drawn.label,
        shown.label,
        shown.score,
        number,
        origin,
        overlap,
        mean_px,
        max_px,
        vertices,
        cost=min(cost, ACTIONS_DELETED + redrawn) if vertices else cost,
        weight=WEIGHT_KEPT if kind == "kept" else WEIGHT_CORRECTED,
        moved_band_hw=band_hw,
    )


def _moved_vertices(drawn: Drawn, shown: Drawn, compared: OutlineDistance, outline_px: Outliner) -> tuple[int, float]:
    """Vertices that had to be moved, at least one; and what drawing the object anew would have cost."""
    new_px, old_px = outline_px(drawn.mask_hw), outline_px(shown.mask_hw)
    arrived = compared.far_points(new_px, of_here=True, accepted_px=ACCEPTED_PX)
    left = compared.far_points(old_px, of_here=False, accepted_px=ACCEPTED_PX)
    return max(1, arrived, left), ACTIONS_ADDED + len(new_px)


@dataclass(frozen=True, slots=True, eq=False)
class DrawnObject:
    """A `Drawn` of plain values, for objects that do not come from Label Studio."""

    label: str
    mask_hw: np.ndarray
    region_ids: tuple[str, ...] = ()
    score: float | None = None
