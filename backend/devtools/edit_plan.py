"""A plan of vertex edits that is carried out: the outline that it ends with is rasterised and compared with the truth.

Both outlines are split into loops (exteriors and holes of all parts), and loops that overlap are paired. Each vertex of
a shown loop belongs to the zone of one vertex of the true loop, in order around both. A corrected zone ends with the
true vertex; its shown vertices are dragged there, removed, or left where they are close enough. So a plan is a set of
zones (and of loops to be added or removed), its cost is the least number of actions that turn one sequence of vertices
into the other, and its result is known.

Shapes: H, W size of a window of the image; M vertices of a true loop, N of a shown one; S sample points of outlines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from integration.polygons.contours import fill_even_odd
from integration.polygons.joining import split_ring
from integration.polygons.simplify import signed_area
from model.instance import iou_matrix
from training.metrics.boundary import outline_corners

#: A vertex within this many times the allowed distance of its place is dragged there; else a new one is added.
DRAG_REACH = 2.0
#: A vertex that must move anyway is dragged from this many times farther.
OFF_REACH = 4
#: Shares of the allowed distance within which vertices of corrected zones may stay; tried in this order.
KEPT_SHARES = (1.0, 0.5, 0.2, 0.0)
KEY_S, POINT_S, PRESS_S, THINK_S = 0.2, 1.1, 0.1, 1.35
_CLICK_S = POINT_S + 2 * PRESS_S
_DRAG_S = 2 * (POINT_S + PRESS_S)
#: (actions, seconds) of each step of the table in `edits`.
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
_DRAG, _ADD, _REMOVE = (STEPS[step][0] for step in ("drag", "add", "remove"))
#: The search stops at a plan that costs this many times the actions of redrawing: pruning never saves so much.
_HOPELESS = 1.5
_CUT_VERTICES = 2  # of a loop that is joined to the others
#: Vertices (N, 2) of a run of a loop after editing, and the steps that lead there.
Stretch = tuple[np.ndarray, Counter[str]]


def actions_of(steps: Counter[str]) -> int:
    """Number of actions of steps."""
    return sum(STEPS[step][0] * count for step, count in steps.items())


@dataclass(frozen=True, slots=True)
class GoodOutline:
    """Limits within which an annotator, literal or practised, leaves an outline as it is."""

    iou: float = 0.95
    distance_px: float = 3.0
    double_iou: float = 0.7
    practised: bool = False

    def accepts(self, target_hw: np.ndarray, mask_hw: np.ndarray, ignored_hw: np.ndarray | None = None) -> bool:
        """Whether a mask is a good outline of a target, but for pixels that may be on either side."""
        return Target(target_hw, ignored_hw).difference(mask_hw, self).is_good


class Target:
    """A true mask, with its outline.

    Args:
        mask_hw: bool, H x W. ignored_hw: bool, H x W, pixels that may be on either side.
    """

    def __init__(self, mask_hw: np.ndarray, ignored_hw: np.ndarray | None = None) -> None:
        self.mask_hw, self._ignored_hw = mask_hw, ignored_hw
        self._points_px = _outline_points(mask_hw)
        self._tree = cKDTree(self._points_px)

    def difference(self, mask_hw: np.ndarray, good: GoodOutline) -> Difference:
        """Compare with a mask of the same size."""
        if self._ignored_hw is not None:
            mask_hw = np.where(self._ignored_hw, self.mask_hw, mask_hw)
        missing_hw, extra_hw = self.mask_hw & ~mask_hw, mask_hw & ~self.mask_hw
        common = np.count_nonzero(self.mask_hw) - np.count_nonzero(missing_hw)
        union = np.count_nonzero(mask_hw) + np.count_nonzero(missing_hw)
        points_px = _outline_points(mask_hw)
        far_px = [points_px[:0]]
        if len(points_px):
            far_px = [
                points[tree.query(points, distance_upper_bound=good.distance_px + 1e-6)[0] == np.inf]
                for points, tree in ((points_px, self._tree), (self._points_px, cKDTree(points_px)))
            ]
        return Difference(missing_hw, extra_hw, common, union, np.concatenate(far_px), good.iou)


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """How a mask differs from its target.

    Attributes:
        missing_hw, extra_hw: bool, H x W.
        common, union: pixels of the mask and its target.
        far_px: (S, 2), points of either outline that are too far off the other one.
        least_iou: least IoU of a good outline.
    """

    missing_hw: np.ndarray
    extra_hw: np.ndarray
    common: int
    union: int
    far_px: np.ndarray
    least_iou: float

    @property
    def is_good(self) -> bool:
        """Whether the mask's outline is good."""
        return self.common > 0 and self.common >= self.least_iou * self.union and not len(self.far_px)


def _outline_points(mask_hw: np.ndarray) -> np.ndarray:
    """Corners of pixels (S, 2) that the outline of a mask passes."""
    return np.argwhere(outline_corners(mask_hw))[:, ::-1].astype(np.float64)


@dataclass(frozen=True, slots=True)
class VertexPlan:
    """Steps of an annotator on one outline, whether it is good after them, and whether it is drawn anew."""

    steps: Counter[str]
    ends_good: bool = True
    is_redrawn: bool = False

    @property
    def actions(self) -> int:
        """Number of actions."""
        return actions_of(self.steps)


def plan_vertices(
    vertices_px: np.ndarray,
    target_px: np.ndarray,
    target_hw: np.ndarray,
    good: GoodOutline,
    ignored_hw: np.ndarray | None = None,
    *,
    most_actions: int | None = None,
) -> VertexPlan:
    """Plan how an outline is made good.

    Args:
        vertices_px: (N, 2) of the shown region: one ring, its parts and holes joined by cuts.
        target_px: (M, 2), where a person would click; an outline of them is good.
        target_hw: bool, H x W, the truth.
        ignored_hw: bool, H x W: pixels that may be on either side.
        most_actions: a plan that needs far more is given up as one that does not end good.
    """
    plans, target = list[VertexPlan](), Target(target_hw, ignored_hw)
    for is_growing in (False, True):
        edits = _LoopEdits(_loops(vertices_px), _loops(target_px), target_hw.shape, good)
        plans.append(_Search(edits, target, good, most_actions).run(is_growing=is_growing))
        if not plans[0].steps:
            break
    return min(plans, key=lambda plan: (not plan.ends_good, plan.actions))


class _Search:
    """The search for zones that make an outline good when they are corrected."""

    def __init__(self, edits: _LoopEdits, target: Target, good: GoodOutline, most_actions: int | None) -> None:
        self._edits, self._target, self._good = edits, target, good
        self._give_up_at = np.inf if most_actions is None else _HOPELESS * most_actions

    def _difference(self) -> Difference:
        return self._target.difference(self._edits.result_hw(), self._good)

    def run(self, *, is_growing: bool) -> VertexPlan:
        """Correct more zones until the outline is good, then drop those that are not needed.

        Args:
            is_growing: first correct more zones, and only then be stricter about vertices that stay in them; else the
                other way round.
        """
        difference = self._difference()
        if difference.is_good:
            return VertexPlan(Counter(), ends_good=True)
        edits = self._edits
        edits.choose(difference)
        while edits.actions <= self._give_up_at:
            for share in KEPT_SHARES:
                edits.kept_px = share * self._good.distance_px
                difference = self._difference()
                while is_growing and not difference.is_good and edits.choose(difference):
                    difference = self._difference()
                if difference.is_good:
                    self._prune()
                    return VertexPlan(edits.steps(), ends_good=True)
            if not edits.choose(difference) and not edits.grow():
                break
        return VertexPlan(edits.steps(), ends_good=False)

    def _prune(self) -> None:
        """Drop zones one by one, where the outline stays good and the plan costs no more."""
        edits = self._edits
        actions = edits.actions
        for unit in np.flatnonzero(edits.is_wrong):
            edits.is_wrong[unit] = False
            if edits.actions <= actions and self._difference().is_good:
                actions = edits.actions
            else:
                edits.is_wrong[unit] = True


def _loops(ring_px: np.ndarray) -> list[np.ndarray]:
    """Exteriors and holes of a ring with cuts."""
    if len(ring_px) < 3:
        return []
    return [loop for polygon in split_ring(ring_px) for loop in (polygon.exterior, *polygon.holes)]


@dataclass(slots=True, eq=False)
class _Pair:
    """A true loop, a shown one, and which stretch of the shown one belongs to which true vertex.

    Attributes:
        target_px: (M, 2). shown_px: (N, 2), walked in the same direction, first vertices near each other.
        zones: (N,), the true vertex of each shown one, ascending.
        is_before: (N,), whether a shown vertex lies before its true vertex, as the loop is walked.
        off_px: (N,), distance from the true loop.
        is_wrong: (M,), the zones that are corrected.
    """

    target_px: np.ndarray
    shown_px: np.ndarray
    zones: np.ndarray = field(init=False)
    is_before: np.ndarray = field(init=False)
    off_px: np.ndarray = field(init=False)
    is_wrong: np.ndarray = field(init=False)
    _cache: dict[tuple[bool, float, tuple[int, ...]], Stretch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        away = np.hypot(*(self.shown_px[:, None] - self.target_px[None]).transpose(2, 0, 1))
        shown_start, target_start = map(int, np.unravel_index(np.argmin(away), away.shape))
        self.shown_px, away = np.roll(self.shown_px, -shown_start, axis=0), np.roll(away, -shown_start, axis=0)
        self.target_px, away = np.roll(self.target_px, -target_start, axis=0), np.roll(away, -target_start, axis=1)
        self.zones = _in_order(away)
        previous_px, next_px = np.roll(self.target_px, 1, axis=0), np.roll(self.target_px, -1, axis=0)
        zone_px = self.target_px[self.zones]
        to_before = _segment_distance(self.shown_px, previous_px[self.zones], zone_px)
        to_after = _segment_distance(self.shown_px, zone_px, next_px[self.zones])
        self.is_before, self.off_px = to_before < to_after, np.minimum(to_before, to_after)
        self.is_wrong = np.zeros(len(self.target_px), dtype=np.bool_)

    def stretches(self, kept_px: float, good: GoodOutline) -> list[Stretch]:
        """The loop after editing, run by run of zones, with the steps of each."""
        runs = [
            (flag, [number for number, _ in run]) for flag, run in groupby(enumerate(self.is_wrong), lambda z: z[1])
        ]
        if len(runs) > 2 and runs[0][0] and runs[-1][0]:
            # The loop begins in the middle of a run.
            runs[0] = (True, runs.pop()[1] + runs[0][1])
        keys = [(bool(flag), kept_px, tuple(zones)) for flag, zones in runs]
        for key in keys:
            if key not in self._cache:
                self._cache[key] = self._stretch(key[0], list(key[2]), kept_px, good)
        return [self._cache[key] for key in keys]

    def _stretch(self, is_wrong: bool, zones: list[int], kept_px: float, good: GoodOutline) -> Stretch:
        rows = np.concatenate([np.flatnonzero(self.zones == zone) for zone in zones])
        if not is_wrong:
            return self.shown_px[rows], Counter()
        # Number of the run's true vertices that each shown one lies behind.
        position = np.array([zones.index(zone) for zone in self.zones[rows]], dtype=np.int64) + ~self.is_before[rows]
        is_off = self.off_px[rows] > good.distance_px
        reach_px = np.where(is_off, OFF_REACH, 1) * DRAG_REACH * good.distance_px
        if good.practised:
            reach_px = np.full(len(rows), np.inf)
        stays = self.off_px[rows] <= kept_px if kept_px else np.zeros(len(rows), dtype=np.bool_)
        return cheapest_stretch(self.shown_px[rows], self.target_px[zones], reach_px, stays, position)


def _in_order(distances_px: np.ndarray) -> np.ndarray:
    """Choose a column for each row of distances (N, M), never falling from row to row, with the least sum: (N,)."""
    count = distances_px.shape[1]
    sums_px, origin = distances_px[0].copy(), np.zeros(distances_px.shape, dtype=np.int64)
    columns = np.arange(count)
    for row in range(1, len(distances_px)):
        least_sums_px = np.minimum.accumulate(sums_px)
        is_new = sums_px <= least_sums_px
        origin[row] = np.maximum.accumulate(np.where(is_new, columns, 0))
        sums_px = least_sums_px + distances_px[row]
    zones = np.empty(len(distances_px), dtype=np.int64)
    column = int(np.argmin(sums_px))
    for row in range(len(distances_px) - 1, -1, -1):
        zones[row] = column
        column = int(origin[row, column])
    return zones


def cheapest_stretch(
    shown_px: np.ndarray, places_px: np.ndarray, reach_px: np.ndarray, stays: np.ndarray, position: np.ndarray
) -> tuple[np.ndarray, Counter[str]]:
    """Turn a run of vertices into another one with the fewest actions.

    Args:
        shown_px: (N, 2). places_px: (M, 2), all of which shall have a vertex.
        reach_px: (N,), from how far each shown vertex is dragged.
        stays: (N,), whether it may stay where it is, and position: (N,), behind how many places.

    Returns:
        The run after editing, and the steps.
    """
    count, places = len(shown_px), len(places_px)
    distances_px = (
        np.hypot(*(shown_px[:, None] - places_px[None]).transpose(2, 0, 1)) if count else np.empty((0, places))
    )
    can_drag = (distances_px <= reach_px[:, None]).tolist()
    cost = [[_ADD * place for place in range(places + 1)]]
    move = [["add"] * (places + 1)]
    for vertex in range(count):
        above = cost[-1]
        row, moves = [above[0] + _REMOVE], ["remove"]
        for place in range(places + 1):
            choices = [(above[place] + _REMOVE, "remove")]
            if stays[vertex] and position[vertex] == place:
                choices.append((above[place], "keep"))
            if place:
                choices.append((row[place - 1] + _ADD, "add"))
                if can_drag[vertex][place - 1]:
                    choices.append((above[place - 1] + _DRAG, "drag"))
            cheapest_choice = min(choices, key=lambda choice: choice[0])
            if place:
                row.append(cheapest_choice[0])
                moves.append(cheapest_choice[1])
            else:
                row, moves = [cheapest_choice[0]], [cheapest_choice[1]]
        cost.append(row)
        move.append(moves)
    vertex, place, steps, run = count, places, Counter[str](), []
    while vertex or place:
        step = move[vertex][place]
        if step == "keep":
            run.append(shown_px[vertex - 1])
        else:
            steps[step] += 1
            if step != "remove":
                run.append(places_px[place - 1])
        vertex, place = vertex - (step != "add"), place - (step in ("add", "drag"))
    return np.array(run[::-1], dtype=np.float64).reshape(-1, 2), steps


class _LoopEdits:
    """Loops of a shown and of a true outline, and the edits of the shown ones."""

    def __init__(
        self, shown: Sequence[np.ndarray], target: Sequence[np.ndarray], shape_hw: tuple[int, ...], good: GoodOutline
    ) -> None:
        self._shape_hw, self._good, self.kept_px = shape_hw, good, good.distance_px
        partners = _partners(shown, target, shape_hw)
        self._pairs = [_Pair(target[number], shown[partner]) for number, partner in partners.items()]
        self._added_loops = [loop for number, loop in enumerate(target) if number not in partners]
        self._removed_loops = [loop for number, loop in enumerate(shown) if number not in partners.values()]
        #: Units of work: the zones of each pair, then the loops to be added, then those to be removed.
        self._sizes = [len(pair.target_px) for pair in self._pairs]
        self.is_wrong = np.zeros(sum(self._sizes) + len(self._added_loops) + len(self._removed_loops), dtype=np.bool_)
        points, units, begin = list[np.ndarray](), list[np.ndarray](), 0
        for pair in self._pairs:
            points_px, owner = _sampled(pair.target_px)
            points, units = [*points, points_px], [*units, owner + begin]
            begin += len(pair.target_px)
        for loop in (*self._added_loops, *self._removed_loops):
            points_px = _sampled(loop)[0]
            points, units = [*points, points_px], [*units, np.full(len(points_px), begin)]
            begin += 1
        self._units, self._tree = np.concatenate(units), cKDTree(np.concatenate(points))

    def _owned(self, points_px: np.ndarray) -> np.ndarray:
        """Count the points (S, 2) that are nearest to each unit."""
        if not len(points_px):
            return np.zeros(len(self.is_wrong), dtype=np.int64)
        return np.bincount(self._units[self._tree.query(points_px)[1]], minlength=len(self.is_wrong))

    def choose(self, difference: Difference) -> bool:
        """Correct units too far off, then the largest errors until the IoU is reached; False if none is new."""
        missing_px, extra_px = (
            self._owned(np.argwhere(pixels)[:, ::-1] + 0.5) for pixels in (difference.missing_hw, difference.extra_hw)
        )
        units = (self._owned(difference.far_px) > 0) & ~self.is_wrong
        gained_px, saved_px = np.where(self.is_wrong, 0, missing_px), np.where(self.is_wrong, 0, extra_px)
        common, union = difference.common + gained_px[units].sum(), difference.union - saved_px[units].sum()
        for unit in np.argsort(-(gained_px + saved_px), kind="stable"):
            if common >= self._good.iou * union or not gained_px[unit] + saved_px[unit]:
                break
            if not units[unit]:
                units[unit] = True
                common, union = common + gained_px[unit], union - saved_px[unit]
        self.is_wrong |= units
        return bool(units.any())

    def grow(self) -> bool:
        """Correct the neighbours of corrected zones, too; False if all are corrected already."""
        if self.is_wrong.all():
            return False
        begin = 0
        for size in self._sizes:
            zones = self.is_wrong[begin : begin + size]
            zones |= np.roll(zones, 1) | np.roll(zones, -1)
            begin += size
        if self.is_wrong[:begin].all() or not self.is_wrong[:begin].any():
            self.is_wrong[:] = True
        return True

    def _stretches(self) -> list[tuple[list[np.ndarray], Counter[str]]]:
        """Each loop after editing, in stretches, and its steps."""
        results, begin = [], 0
        for pair, size in zip(self._pairs, self._sizes, strict=True):
            pair.is_wrong = self.is_wrong[begin : begin + size]
            begin += size
            runs = pair.stretches(self.kept_px, self._good)
            results.append(([run for run, _ in runs], sum((steps for _, steps in runs), Counter[str]())))
        for loops, step, is_there in ((self._added_loops, "add", True), (self._removed_loops, "remove", False)):
            for loop in loops:
                is_changed = bool(self.is_wrong[begin])
                begin += 1
                steps = Counter({step: len(loop) + _CUT_VERTICES}) if is_changed else Counter[str]()
                results.append(([loop] if is_changed is is_there else [], steps))
        return results

    def steps(self) -> Counter[str]:
        """The steps that lead to the result."""
        return sum((steps for _, steps in self._stretches()), Counter({"edit": 1}))

    @property
    def actions(self) -> int:
        """Number of actions of the steps."""
        return actions_of(self.steps())

    def result_hw(self) -> np.ndarray:
        """Mask (bool, H x W) of the outline after the steps."""
        rings = [np.concatenate(runs) for runs, _ in self._stretches() if runs]
        return _filled([ring for ring in rings if len(ring) > 2], self._shape_hw)


def _filled(rings: Sequence[np.ndarray], shape_hw: tuple[int, ...]) -> np.ndarray:
    mask_hw = np.zeros(shape_hw, dtype=np.bool_)
    if rings:
        fill_even_odd(rings, mask_hw)
    return mask_hw


def _partners(shown: Sequence[np.ndarray], target: Sequence[np.ndarray], shape_hw: tuple[int, ...]) -> dict[int, int]:
    """The shown loop that overlaps each true loop most, exteriors and holes apart; each once."""
    overlap = iou_matrix(*([_filled([loop], shape_hw) for loop in loops] for loops in (target, shown)))
    senses = [np.array([signed_area(loop) > 0 for loop in loops]) for loops in (target, shown)]
    overlap *= senses[0][:, None] == senses[1][None]
    rows, columns = linear_sum_assignment(-overlap)
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True) if overlap[row, column] > 0}


def _sampled(loop_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (S, 2) about a pixel apart along a loop (M, 2), and the vertex each is nearest to along it."""
    step = np.roll(loop_px, -1, axis=0) - loop_px
    counts = np.maximum(np.ceil(np.hypot(*step.T)).astype(np.int64), 1)
    edge = np.repeat(np.arange(len(loop_px)), counts)
    share = (np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[edge]
    return loop_px[edge] + share[:, None] * step[edge], (edge + (share > 0.5)) % len(loop_px)


def _segment_distance(points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Distance of each point from its segment."""
    line = ends - starts
    share = (((points - starts) * line).sum(axis=1) / np.maximum((line**2).sum(axis=1), 1e-12)).clip(0, 1)
    return np.asarray(np.hypot(*(points - starts - share[:, None] * line).T))
