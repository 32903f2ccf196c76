"""A simulated annotator: what it takes by hand to bring predicted regions to the truth in Label Studio's editor.

Every true object shall end as one region, with its label, whose outline is *good*: IoU with the truth of at least 0.95
and no point of either outline farther than 3 px from the other one. The annotator has the editor's actions:

    action          what the hand does                                  actions     seconds
    delete          select the region, press the delete key             2           3.1
    relabel         select the region, press the label's key            2           3.1
    draw            press the label's key                               1           1.6
      + a vertex    point and click                                     1           1.3
      + close       click on the first vertex                           1           1.3
    edit            select the region, look where it is wrong           1           2.7
      + drag        grab a vertex, pull it to its place, let go         1           2.4
      + add         click on the outline, then drag the new vertex      2           3.7
      + remove      alt-click on a vertex                               1           1.5

Seconds are sums of the keystroke-level model (Card, Moran and Newell 1980): key 0.2, point 1.1, press or release 0.1,
think 1.35, once an object where a decision is needed.

Which region becomes which object, and whether it is edited or deleted and drawn anew, is chosen so that the sum of
actions is least. An outline is edited at the corners of the truth: each wrong pixel belongs to the nearest vertex of
the true outline. All vertices are put right that have a point of either outline too far off nearby, then others, the
largest error first, until the IoU is reached; predicted vertices that are too far off and were not dragged to a new
place are removed.

That annotator is literal: every speck of the truth is drawn, corner by corner of its pixels, and vertices are dragged
from nearby only. A *practised* one (`GoodOutline.practised`) has the same actions and seconds, and knows better:

    - Parts and holes of the truth smaller than 16 px are neither drawn nor deleted.
    - Vertices are clicked anywhere, not on corners of pixels: the fewest of both that make the outline good.
    - Where a stretch is put right, the vertices that are there are dragged, from however far, before any is added.

Shapes: H, W image size; N, M vertices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from model.instance import iou_matrix
from training.metrics.outline_distance import compare_outlines

KEY_S, POINT_S, PRESS_S, THINK_S = 0.2, 1.1, 0.1, 1.35
_CLICK_S = POINT_S + 2 * PRESS_S
_DRAG_S = 2 * (POINT_S + PRESS_S)
#: (actions, seconds) of each step of the table above.
STEPS: dict[str, tuple[int, float]] = {
    "delete": (2, THINK_S + _CLICK_S + KEY_S + 0.25),
    "relabel": (2, THINK_S + _CLICK_S + KEY_S + 0.25),
    "draw": (1, THINK_S + KEY_S),
    "click": (1, _CLICK_S),
    "edit": (1, THINK_S + _CLICK_S),
    "drag": (1, _DRAG_S),
    "add": (2, _CLICK_S + _DRAG_S),
    "remove": (1, KEY_S + _CLICK_S),
}
#: Only regions that overlap an object at least this much are tried as its start.
_LEAST_IOU = 0.1
#: A vertex within this many times the allowed distance of its place is dragged there; else a new one is added.
_DRAG_REACH = 2.0
#: Smaller parts and holes of the truth are nobody's work for a practised annotator.
CRUMB_PX = 16.0


@dataclass(frozen=True, slots=True)
class GoodOutline:
    """Limits within which an annotator, literal or practised, leaves an outline as it is."""

    iou: float = 0.95
    distance_px: float = 3.0
    double_iou: float = 0.7
    practised: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class EditableObject:
    """A region that is shown, or a true object.

    Attributes:
        label: its class.
        mask_hw: bool, H x W.
        vertices_px: (N, 2), x and y; of a region as it is shown, of the truth as a person would click it.
        ignored_hw: bool, H x W, of a true object: pixels that may be on either side.
    """

    label: str
    mask_hw: np.ndarray
    vertices_px: np.ndarray
    ignored_hw: np.ndarray | None = None


@dataclass(slots=True)
class Edits:
    """Sums over images.

    Attributes:
        images, objects, regions, vertices: given; objects are true ones, vertices those of the regions.
        parts, true_parts: areas connected by sides or corners, of the regions and of the objects.
        border, border_reached: true objects at the image's border that a region shows; those whose region reaches all
            the sides of the image that the object reaches.
        untouched: objects that a region showed well enough, with no region beside it to be deleted.
        doubles: pairs of regions that overlap too much. false: regions that were deleted.
        misses: objects drawn from nothing. redrawn: objects whose region was deleted and drawn anew.
        steps: how often each step of `STEPS` was taken.
    """

    images: int = 0
    objects: int = 0
    regions: int = 0
    vertices: int = 0
    parts: int = 0
    true_parts: int = 0
    border: int = 0
    border_reached: int = 0
    untouched: int = 0
    doubles: int = 0
    false: int = 0
    misses: int = 0
    redrawn: int = 0
    steps: Counter[str] = field(default_factory=Counter)

    @property
    def actions(self) -> int:
        """Of the hand, on all images."""
        return sum(STEPS[step][0] * count for step, count in self.steps.items())

    @property
    def seconds(self) -> float:
        """By the action table."""
        return sum(STEPS[step][1] * count for step, count in self.steps.items())

    def as_dict(self) -> dict[str, Any]:
        """Sums and the figures an object; plain types."""
        objects = max(self.objects, 1)
        return {
            **asdict(self),
            "steps": dict(self.steps),
            "actions": self.actions,
            "actions_per_object": self.actions / objects,
            "untouched_share": self.untouched / objects,
            "regions_per_object": self.regions / objects,
            "parts_per_object": self.parts / objects,
            "true_parts_per_object": self.true_parts / objects,
            "vertices_per_object": self.vertices / objects,
            "seconds_per_object": self.seconds / objects,
        }

    def add(
        self, shown: Sequence[EditableObject], truth: Sequence[EditableObject], good: GoodOutline | None = None
    ) -> None:
        """Correct the regions of one image to its true objects, and count."""
        good = good or GoodOutline()
        self.images += 1
        self.objects += len(truth)
        self.regions += len(shown)
        self.vertices += sum(len(region.vertices_px) for region in shown)
        self.parts += sum(_part_count(region.mask_hw) for region in shown)
        self.true_parts += sum(_part_count(drawn.mask_hw) for drawn in truth)
        masks_hw = [region.mask_hw for region in shown]
        self.doubles += int(np.count_nonzero(np.triu(iou_matrix(masks_hw, masks_hw), 1) > good.double_iou))
        partners, plans = _cheapest_partners(shown, truth, good)
        burdened = self._delete(shown, truth, set(range(len(shown))) - set(partners.values()))
        for number, drawn in enumerate(truth):
            region = partners.get(number)
            if region is None:
                self.misses += 1
                self.steps += _drawing(drawn)
                continue
            plan = plans[number, region]
            sides = _sides(drawn.mask_hw)
            self.border += bool(sides)
            self.border_reached += bool(sides) and sides <= _sides(shown[region].mask_hw)
            self.steps += plan.steps
            self.redrawn += plan.is_redrawn
            self.untouched += not plan.steps and number not in burdened

    def _delete(self, shown: Sequence[EditableObject], truth: Sequence[EditableObject], leftover: set[int]) -> set[int]:
        """Delete regions; the true objects that these lay on."""
        burdened = set()
        for number in leftover:
            self.steps["delete"] += 1
            self.false += 1
            area = np.count_nonzero(shown[number].mask_hw)
            for index, drawn in enumerate(truth):
                if 2 * np.count_nonzero(shown[number].mask_hw & drawn.mask_hw) > area:
                    burdened.add(index)
        return burdened


def _part_count(mask_hw: np.ndarray) -> int:
    """Areas that are connected by sides or corners."""
    return int(ndimage.label(mask_hw, np.ones((3, 3)))[1])


def _sides(mask_hw: np.ndarray) -> set[int]:
    """The sides of the image that a mask reaches."""
    return {side for side, line in enumerate((mask_hw[0], mask_hw[-1], mask_hw[:, 0], mask_hw[:, -1])) if line.any()}


@dataclass(frozen=True, slots=True)
class _Plan:
    """The cheapest way from a region to an object."""

    steps: Counter[str]
    is_redrawn: bool = False

    @property
    def actions(self) -> int:
        return sum(STEPS[step][0] * count for step, count in self.steps.items())


def _cheapest_partners(
    shown: Sequence[EditableObject], truth: Sequence[EditableObject], good: GoodOutline
) -> tuple[dict[int, int], dict[tuple[int, int], _Plan]]:
    """The region that each object starts from, if any, and what is to be done to it."""
    plans: dict[tuple[int, int], _Plan] = {}
    if not shown or not truth:
        return {}, plans
    delete = STEPS["delete"][0]
    overlap = iou_matrix([drawn.mask_hw for drawn in truth], [region.mask_hw for region in shown])
    saved = np.zeros_like(overlap)
    for index, number in np.argwhere(overlap >= _LEAST_IOU).tolist():
        drawn = truth[index]
        plan = plans[index, number] = _plan(shown[number], drawn, good)
        anew = _Plan(_drawing(drawn)).actions + delete
        # Of equal costs, the region that overlaps more: a person does not choose at random.
        saved[index, number] = anew - plan.actions + 1e-6 + 1e-3 * overlap[index, number]
    rows, columns = linear_sum_assignment(-saved)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return {index: number for index, number in pairs if saved[index, number] > 0}, plans


def _drawing(drawn: EditableObject) -> Counter[str]:
    return Counter({"draw": 1, "click": len(drawn.vertices_px) + 1})


def _plan(region: EditableObject, drawn: EditableObject, good: GoodOutline) -> _Plan:
    steps: Counter[str] = Counter()
    if region.label != drawn.label:
        steps["relabel"] = 1
    steps += _vertex_steps(region, drawn, good)
    anew = _drawing(drawn) + Counter({"delete": 1})
    if _Plan(anew).actions < _Plan(steps).actions:
        return _Plan(anew, is_redrawn=True)
    return _Plan(steps)


def _vertex_steps(region: EditableObject, drawn: EditableObject, good: GoodOutline) -> Counter[str]:
    """Steps that make a region's outline good; none if it is."""
    target_hw, mask_hw = drawn.mask_hw, region.mask_hw
    if drawn.ignored_hw is not None:
        mask_hw = np.where(drawn.ignored_hw, target_hw, mask_hw)
    margin_px = int(good.distance_px) + 2
    compared = compare_outlines(target_hw, mask_hw, margin_px=margin_px)
    window = compared.window
    missing, extra = target_hw[window] & ~mask_hw[window], mask_hw[window] & ~target_hw[window]
    common = np.count_nonzero(target_hw[window] & mask_hw[window])
    union = common + np.count_nonzero(missing) + np.count_nonzero(extra)
    if compared.max_px <= good.distance_px and common >= good.iou * union:
        return Counter()
    corners = cKDTree(drawn.vertices_px - [window[1].start, window[0].start])
    count = len(drawn.vertices_px)
    gained, removed = (_share_out(pixels, corners, count, offset=0.5) for pixels in (missing, extra))
    far = (compared.here & (compared.to_there_px > good.distance_px)) | (
        compared.there & (compared.to_here_px > good.distance_px)
    )
    is_wrong = _share_out(far, corners, count, offset=0.0) > 0
    common, union = common + gained[is_wrong].sum(), union - removed[is_wrong].sum()
    for corner in np.argsort(-(gained + removed), kind="stable"):
        if common >= good.iou * union:
            break
        if not is_wrong[corner]:
            is_wrong[corner] = True
            common, union = common + gained[corner], union - removed[corner]
    vertices_px = region.vertices_px - [window[1].start, window[0].start]
    is_spare = is_wrong[corners.query(vertices_px)[1]] & good.practised
    return _hand_steps(vertices_px, is_spare, corners.data[is_wrong], compared.to_here_px, good)


def _share_out(pixels: np.ndarray, corners: cKDTree, count: int, *, offset: float) -> np.ndarray:
    """How many of these pixels are nearest to each corner: int (N,)."""
    points = np.argwhere(pixels)[:, ::-1] + offset
    if not len(points):
        return np.zeros(count, dtype=np.int64)
    return np.bincount(corners.query(points)[1], minlength=count)


def _hand_steps(
    vertices_px: np.ndarray, is_spare: np.ndarray, places_px: np.ndarray, distance_px: np.ndarray, good: GoodOutline
) -> Counter[str]:
    """Bring vertices to their places: drag those near, add what lacks, remove what is left far off.

    Args:
        vertices_px: of the region, in a window of the image.
        is_spare: those that are dragged from however far.
        places_px: corners of the truth to be put right.
        distance_px: of the window's pixel corners from the true outline.
        good: what may stay.
    """
    at = np.rint(vertices_px).astype(np.int64)
    height, width = distance_px.shape
    is_off = distance_px[at[:, 1].clip(0, height - 1), at[:, 0].clip(0, width - 1)] > good.distance_px
    dragged: set[int] = set()
    for place in places_px:
        away = np.hypot(*(vertices_px - place).T)
        away[list(dragged)] = np.inf
        # A vertex that is in the way anyhow is worth pulling from farther.
        reach = np.where(is_off, 4, 1) * _DRAG_REACH * good.distance_px
        candidates = np.flatnonzero((away <= reach) | (is_spare & np.isfinite(away)))
        if len(candidates):
            dragged.add(int(candidates[np.argmin(away[candidates])]))
    is_off[list(dragged)] = False
    return Counter(
        {"edit": 1, "drag": len(dragged), "add": len(places_px) - len(dragged), "remove": int(np.count_nonzero(is_off))}
    )
