"""A simulated annotator: the actions that correct predicted regions to the truth in Label Studio's editor.

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
actions is least. An outline is edited at the vertices of the truth: first those near which a point of either outline is
too far off, then others, the largest error first, until the IoU is reached (`edit_plan`). Each plan is carried out:
its outline is rasterised, and corrected further until it is good.

That annotator is literal: every speck of the truth is drawn, corner by corner of its pixels, and vertices are dragged
from nearby only. A *practised* one (`GoodOutline.practised`) has the same actions and seconds, and works better:

    - Parts and holes of the truth smaller than 16 px are neither drawn nor deleted.
    - Vertices are clicked anywhere, not on corners of pixels: the fewest of both that make the outline good.
    - Where a stretch is corrected, existing vertices are dragged, from however far, before any is added.

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

from backend.devtools.edit_plan import STEPS, GoodOutline, VertexPlan, actions_of, plan_vertices
from model.instance import iou_matrix, window_of

#: Only regions that overlap an object at least this much are tried as its start.
_LEAST_IOU = 0.1
#: A practised annotator ignores smaller parts and holes of the truth.
CRUMB_PX = 16.0


@dataclass(frozen=True, slots=True, eq=False)
class EditableObject:
    """A region that is shown, or a true object.

    Attributes:
        label: its class.
        mask_hw: bool, H x W.
        vertices_px: (N, 2), x and y; of a region as it is shown, of the truth as a person would click it.
        ignored_hw: bool, H x W, of a true object: pixels that may be on either side.
        is_drawn_good: whether an outline of just these vertices is a good one of a true object.
    """

    label: str
    mask_hw: np.ndarray
    vertices_px: np.ndarray
    ignored_hw: np.ndarray | None = None
    is_drawn_good: bool = True


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
        not_good: objects whose outline is not good after the plan.
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
    not_good: int = 0
    redrawn: int = 0
    steps: Counter[str] = field(default_factory=Counter)

    @property
    def actions(self) -> int:
        """Number of actions on all images."""
        return actions_of(self.steps)

    @property
    def seconds(self) -> float:
        """Seconds of all steps by the action table."""
        return sum(STEPS[step][1] * count for step, count in self.steps.items())

    def as_dict(self) -> dict[str, Any]:
        """Sums, and figures per object; plain types, for JSON."""
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
        self, regions: Sequence[EditableObject], truth: Sequence[EditableObject], good: GoodOutline | None = None
    ) -> None:
        """Correct the regions of one image to its true objects, and count."""
        good = good or GoodOutline()
        self.images += 1
        self.objects += len(truth)
        self.regions += len(regions)
        self.vertices += sum(len(region.vertices_px) for region in regions)
        self.parts += sum(_part_count(region.mask_hw) for region in regions)
        self.true_parts += sum(_part_count(target.mask_hw) for target in truth)
        masks_hw = [region.mask_hw for region in regions]
        self.doubles += int(np.count_nonzero(np.triu(iou_matrix(masks_hw, masks_hw), 1) > good.double_iou))
        partners, plans = _cheapest_partners(regions, truth, good)
        covered_indices = self._delete(regions, truth, set(range(len(regions))) - set(partners.values()))
        for number, target in enumerate(truth):
            region = partners.get(number)
            if region is None:
                self.misses += 1
                self.not_good += not target.is_drawn_good
                self.steps += _drawing(target)
                continue
            plan = plans[number, region]
            sides = _sides(target.mask_hw)
            self.border += bool(sides)
            self.border_reached += bool(sides) and sides <= _sides(regions[region].mask_hw)
            self.steps += plan.steps
            self.redrawn += plan.is_redrawn
            self.not_good += not plan.ends_good
            self.untouched += not plan.steps and number not in covered_indices

    def _delete(
        self, regions: Sequence[EditableObject], truth: Sequence[EditableObject], leftover: set[int]
    ) -> set[int]:
        """Delete the leftover regions; indices of the true objects that they covered."""
        covered = set()
        for number in leftover:
            self.steps["delete"] += 1
            self.false += 1
            area = np.count_nonzero(regions[number].mask_hw)
            for index, target in enumerate(truth):
                if 2 * np.count_nonzero(regions[number].mask_hw & target.mask_hw) > area:
                    covered.add(index)
        return covered


def _part_count(mask_hw: np.ndarray) -> int:
    """Number of areas that are connected by sides or corners."""
    return int(ndimage.label(mask_hw, np.ones((3, 3)))[1])


def _sides(mask_hw: np.ndarray) -> set[int]:
    """The sides of the image that a mask reaches."""
    return {side for side, line in enumerate((mask_hw[0], mask_hw[-1], mask_hw[:, 0], mask_hw[:, -1])) if line.any()}


def _cheapest_partners(
    regions: Sequence[EditableObject], truth: Sequence[EditableObject], good: GoodOutline
) -> tuple[dict[int, int], dict[tuple[int, int], VertexPlan]]:
    """The region that each object starts from, if any, and the plan for each pair."""
    plans: dict[tuple[int, int], VertexPlan] = {}
    if not regions or not truth:
        return {}, plans
    delete = STEPS["delete"][0]
    overlap = iou_matrix([target.mask_hw for target in truth], [region.mask_hw for region in regions])
    saved_actions = np.zeros_like(overlap)
    for index, number in np.argwhere(overlap >= _LEAST_IOU).tolist():
        target = truth[index]
        plan = plans[index, number] = _plan(regions[number], target, good)
        redraw_actions = actions_of(_drawing(target)) + delete
        # Of equal costs, a person chooses the region that overlaps more.
        saved_actions[index, number] = redraw_actions - plan.actions + 1e-6 + 1e-3 * overlap[index, number]
    rows, columns = linear_sum_assignment(-saved_actions)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return {index: number for index, number in pairs if saved_actions[index, number] > 0}, plans


def _drawing(target: EditableObject) -> Counter[str]:
    return Counter({"draw": 1, "click": len(target.vertices_px) + 1})


def _plan(region: EditableObject, target: EditableObject, good: GoodOutline) -> VertexPlan:
    steps: Counter[str] = Counter()
    if region.label != target.label:
        steps["relabel"] = 1
    redrawing = _drawing(target) + Counter({"delete": 1})
    plan = _edited(region, target, good, actions_of(redrawing))
    steps += plan.steps
    if not plan.ends_good or actions_of(redrawing) < actions_of(steps):
        return VertexPlan(redrawing, target.is_drawn_good, is_redrawn=True)
    return VertexPlan(steps)


def _edited(region: EditableObject, target: EditableObject, good: GoodOutline, most_actions: int) -> VertexPlan:
    """Plan in a window of the image how a region's outline is made good."""
    window = window_of(region.mask_hw | target.mask_hw, int(good.distance_px) + 3)
    offset = [window[1].start, window[0].start]
    ignored_hw = None if target.ignored_hw is None else target.ignored_hw[window]
    target_hw = target.mask_hw[window]
    if good.accepts(target_hw, region.mask_hw[window], ignored_hw):
        return VertexPlan(Counter(), ends_good=True)
    return plan_vertices(
        region.vertices_px - offset, target.vertices_px - offset, target_hw, good, ignored_hw, most_actions=most_actions
    )
