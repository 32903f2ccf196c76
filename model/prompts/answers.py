"""From a prompt to its object: the view to look at, the network's probabilities, the object in the image.

Shape shorthand: V views, S = 256 the side of a view, H x W an image's size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from scipy.ndimage import binary_erosion
from scipy.ndimage import label as label_components
from scipy.special import expit, logit

from model.instance import Instance, ProbabilityPatch, box_of
from model.prompts.network import VIEW_SIDE, PromptNetwork, prompt_maps
from model.prompts.views import View, view_of_box, view_of_image

#: A point of an image: x, y in pixels, and whether the object is there (True) or not (False).
Point = tuple[float, float, bool]
#: Boxes are drawn loosely: an object may reach this share of the box beyond it.
BOX_SLACK = 0.15
#: A mask that fills less of its view than this is looked at again from nearer.
ZOOM_SHARE = 0.5
#: First clicks that are answered together, without a mask of earlier ones, which may show too little of the object.
FIRST_CLICKS = 3
#: What a click changed is looked at from nearer where that view is at most this share of the first one's side.
NEAR_SHARE = 0.75
#: That view's side: so many times the change's, and at least this share of the first one's.
NEAR_MARGIN, LEAST_NEAR_SHARE = 1.6, 0.25
#: Probabilities of several views are joined on a grid so many times finer than a view's, which fits the nearest view.
FINER = 4
#: A click that the network ignores gets this probability. What is added to its logit is added around it, too, less
#: with the distance: a Gaussian whose standard deviation is this share of the view's side.
HEEDED, HEEDED_SHARE = 0.75, 0.015
#: Probabilities nearer to 0 and 1 count as this near there: the network is never so sure.
LEAST_DOUBT = 0.02
#: Views the network looks at together.
BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A box, clicks and an earlier mask that say which object is meant; at least one of the three.

    Attributes:
        box_xyxy: around the object, loose or tight, in pixels of the image.
        points: clicks, in the order in which they were made.
        mask_hw: the object's mask so far, bool H x W.
    """

    box_xyxy: tuple[float, float, float, float] | None = None
    points: tuple[Point, ...] = ()
    mask_hw: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.box_xyxy is None and self.mask_hw is None and not any(point[2] for point in self.points):
            raise ValueError(
                f"a prompt needs a box, a mask or a positive click; got {len(self.points)} negative clicks"
            )
        if self.box_xyxy is not None:
            x0, y0, x1, y1 = self.box_xyxy
            if not (np.isfinite(self.box_xyxy).all() and x1 > x0 and y1 > y0):
                raise ValueError(f"box is {self.box_xyxy}, expected left < right and top < bottom in pixels")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prompt):
            return NotImplemented
        return (self.box_xyxy, self.points) == (other.box_xyxy, other.points) and self.mask_hw is other.mask_hw


def prompt_steps(prompt: Prompt, first_clicks: int = FIRST_CLICKS) -> list[Prompt]:
    """The prompts that lead to one: its box or first clicks, then a click more each time."""
    if prompt.mask_hw is not None:
        return [prompt]
    start, end = 0, len(prompt.points)
    if prompt.box_xyxy is None:
        start = max(1 + [is_positive for _, _, is_positive in prompt.points].index(True), min(first_clicks, end))
    return [replace(prompt, points=prompt.points[:count]) for count in range(start, end + 1)]


def look(
    network: PromptNetwork,
    image_rgb: np.ndarray,
    views: Sequence[View],
    prompts: Sequence[Prompt],
    *,
    device: torch.device,
    is_mirrored: bool = False,
    refine: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Refined and coarse probabilities (V, 128, 128) of the views' masks, and their expected IoUs (V,).

    Args:
        is_mirrored: predict each view mirrored, too, and return the mean (as RITM does).
        refine: else the coarse masks are returned for the refined ones, too, in half the time.
    """
    maps = [maps_of(view, prompt) for view, prompt in zip(views, prompts, strict=True)]
    return look_at_maps(
        network, image_rgb, views, torch.stack(maps), device=device, is_mirrored=is_mirrored, refine=refine
    )


def look_at_maps(
    network: PromptNetwork,
    image_rgb: np.ndarray,
    views: Sequence[View],
    maps: torch.Tensor,
    *,
    device: torch.device,
    is_mirrored: bool = False,
    refine: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for views whose prompt maps (V, 4, S, S) are known."""
    parts: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(views), BATCH):
        chunk, chunk_maps = views[start : start + BATCH], maps[start : start + BATCH]
        pixels = torch.from_numpy(np.stack([view.pixels(image_rgb) for view in chunk])).permute(0, 3, 1, 2).float()
        if is_mirrored:
            pixels, chunk_maps = torch.cat([pixels, pixels.flip(3)]), torch.cat([chunk_maps, chunk_maps.flip(3)])
        with torch.inference_mode():
            outputs = network.predict(pixels.to(device), chunk_maps.to(device), refine=refine)
            answer = [values.float() for values in outputs]
        if is_mirrored:
            masks = [(values[: len(chunk)] + values[len(chunk) :].flip(2)) / 2 for values in answer[:2]]
            answer = [*masks, answer[2].unflatten(0, (2, -1)).mean(0)]
        parts.append(tuple(values.cpu().numpy() for values in answer))
    refined, coarse, scores = (np.concatenate(values) for values in zip(*parts, strict=True))
    return refined, coarse, scores


def first_view(prompt: Prompt, shape_hw: tuple[int, int]) -> View:
    """The view for a prompt: around its box, around the mask so far and the clicks, or the whole image."""
    if prompt.box_xyxy is not None:
        return view_of_box(prompt.box_xyxy, VIEW_SIDE)
    if prompt.mask_hw is not None and prompt.mask_hw.any():
        return view_of_box(_grow_box(box_of(prompt.mask_hw), prompt.points), VIEW_SIDE)
    return view_of_image(shape_hw, VIEW_SIDE)


def _grow_box(box: Sequence[float], points: Sequence[Point]) -> tuple[float, float, float, float]:
    """A box grown to hold the positive clicks."""
    clicks = [point for point in points if point[2]]
    xs, ys = [p[0] for p in clicks], [p[1] for p in clicks]
    return min([box[0], *xs]), min([box[1], *ys]), max([box[2], *xs]), max([box[3], *ys])


def nearer_view(view: View, values: np.ndarray, prompt: Prompt) -> View | None:
    """The view around the mask that was found, if that shows it larger."""
    mask = values >= 0.5
    if not mask.any():
        return None
    left, top, right, bottom = np.array(box_of(mask), float) / values.shape[0]
    x0, y0, x1, y1 = view.box_xyxy
    box = (x0 + left * (x1 - x0), y0 + top * (y1 - y0), x0 + right * (x1 - x0), y0 + bottom * (y1 - y0))
    near_view = view_of_box(_grow_box(box, prompt.points), VIEW_SIDE)
    a, b, c, d = near_view.box_xyxy
    return near_view if (c - a) * (d - b) < ZOOM_SHARE * (x1 - x0) * (y1 - y0) else None


def changed_part(values: np.ndarray, earlier_values: np.ndarray, place_yx: tuple[int, int]) -> np.ndarray | None:
    """The connected part of the mask's change at a place, bool (s, s); None where the mask did not change."""
    parts, _ = label_components((values >= 0.5) != (earlier_values >= 0.5))
    return parts == parts[place_yx] if parts[place_yx] else None


def view_of_change(view: View, part: np.ndarray | None, point: Point) -> View | None:
    """The square around a click and the part (s, s) of a view that it changed, if that shows it much larger."""
    x0, y0, x1, y1 = view.box_xyxy
    left, top, right, bottom = point[0], point[1], point[0], point[1]
    if part is not None:
        cells = np.array(box_of(part)) / part.shape[0]
        left, top, right, bottom = np.array([x0, y0, x0, y0]) + cells * np.array([x1 - x0, y1 - y0] * 2)
    longest = max(x1 - x0, y1 - y0)
    side = max(NEAR_MARGIN * (right - left), NEAR_MARGIN * (bottom - top), LEAST_NEAR_SHARE * longest)
    if side >= NEAR_SHARE * longest:
        return None
    x, y, half = (left + right) / 2, (top + bottom) / 2, side / 2
    return view_of_box((x - half, y - half, x + half, y + half), VIEW_SIDE, margin=1.0)


def is_cut(part: np.ndarray, view: View, near_view: View, shape_hw: tuple[int, int]) -> bool:
    """Whether a changed part (s, s) of a view ends at the border of its nearer view, inside the image."""
    window = cells_within(view, near_view.box_xyxy, len(part))
    border = window & ~binary_erosion(window, border_value=1)
    return bool((part & border & cells_within(view, (0.0, 0.0, shape_hw[1], shape_hw[0]), len(part))).any())


def maps_of(view: View, prompt: Prompt) -> torch.Tensor:
    """Prompt maps (4, S, S) in pixels of the view."""
    box = None
    if prompt.box_xyxy is not None:
        x0, y0, x1, y1 = view.to_view(np.array(prompt.box_xyxy).reshape(2, 2)).flatten().tolist()
        box = (x0, y0, x1, y1)
    points = [(*view.to_view(np.array([point[:2]]))[0].tolist(), point[2]) for point in prompt.points]
    mask = None
    if prompt.mask_hw is not None:
        mask = torch.from_numpy(view.pixels(prompt.mask_hw, 0).astype(np.float32) / 255)
    return prompt_maps(box, points, mask)


def as_instance(
    view: View, values: np.ndarray, score: float, prompt: Prompt, shape_hw: tuple[int, int], label: str = ""
) -> Instance:
    """The object in a view's probabilities (s, s), in pixels of the image."""
    values = likely_values(values, view, prompt)
    mask = mask_of_view(view, values, shape_hw)
    if not mask.any():  # it lies between the centres of pixels: the pixel where it is likeliest
        mask.flat[int(view.to_image(values, shape_hw).argmax())] = True
    left, top, right, bottom = box_of(mask)
    return Instance(
        box_xyxy=(float(left), float(top), float(right), float(bottom)),
        label=label,
        score=score,
        mask_hw=mask,
        probabilities=ProbabilityPatch(values.astype(np.float32), view.box_xyxy),
    )


def mask_of_view(view: View, values: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """Bool H x W: where probabilities (s, s) of a view reach one half, by the rule of every other mask here."""
    boxes = torch.tensor([view.box_xyxy], dtype=torch.float32)
    masks = paste_masks_in_image(torch.from_numpy(np.ascontiguousarray(values, np.float32))[None], boxes, shape_hw, 0.5)
    return np.asarray(masks[0].numpy(), bool)


def heeded(values: np.ndarray, view: View, point: Point) -> np.ndarray:
    """Probabilities (s, s) of a view, changed around a click that they contradict.

    The logits are moved just so far that the click is right; the change keeps to the network's own edges.
    """
    (x, y, is_positive), side = point, values.shape[0]
    column, row = np.floor(view.to_view(np.array([[x, y]]))[0] * side / view.side).astype(int)
    if not (0 <= column < side and 0 <= row < side) or (values[row, column] >= 0.5) == is_positive:
        return values
    doubtful = values.clip(LEAST_DOUBT, 1 - LEAST_DOUBT)
    logits, cells = logit(doubtful), np.arange(side)
    missing = (1 if is_positive else -1) * logit(HEEDED) - logits[row, column]
    distance2 = (cells[:, None] - row) ** 2 + (cells[None] - column) ** 2
    change = expit(logits + missing * np.exp(-distance2 / (2 * (HEEDED_SHARE * side) ** 2))) - doubtful
    return np.asarray((values + change).clip(0.0, 1.0), np.float32)


def within_box(values: np.ndarray, view: View, box_xyxy: Sequence[float] | None) -> np.ndarray:
    """Probabilities (s, s) of a view, 0 beyond a hand-drawn box and a margin: the object lies inside."""
    if box_xyxy is None:
        return values
    x0, y0, x1, y1 = box_xyxy
    dx, dy = BOX_SLACK * (x1 - x0), BOX_SLACK * (y1 - y0)
    return np.where(cells_within(view, (x0 - dx, y0 - dy, x1 + dx, y1 + dy), values.shape[0]), values, 0.0)


def cells_within(view: View, box_xyxy: Sequence[float], side: int) -> np.ndarray:
    """Which cells of a grid over a view have their centre in a box of the image, bool (side, side)."""
    (u0, v0), (u1, v1) = view.to_view(np.array(box_xyxy).reshape(2, 2)) * side / view.side
    centres = np.arange(side) + 0.5
    return np.asarray(((centres >= v0) & (centres <= v1))[:, None] & ((centres >= u0) & (centres <= u1))[None])


def likely_values(values: np.ndarray, view: View, prompt: Prompt) -> np.ndarray:
    """Probabilities (s, s) of the object that a prompt can mean.

    They are zero beyond its box and in parts that no positive click touches, raised where none reaches one half, and
    agree with every click in the view.
    """
    values = within_box(values, view, prompt.box_xyxy)
    largest_value = float(values.max())
    if largest_value < 0.5:
        values = np.clip(values * (0.75 / max(largest_value, 1e-6)), 0.0, 1.0)
    for point in prompt.points:
        values = heeded(values, view, point)
    clicks = [point for point in prompt.points if point[2]]
    if not clicks or prompt.box_xyxy is not None:
        return values
    parts, count = label_components(values >= 0.5)
    if count < 2:
        return values
    side = values.shape[0]
    places = (view.to_view(np.array([point[:2] for point in clicks])) * side / VIEW_SIDE).astype(int).clip(0, side - 1)
    touched_parts = {int(parts[y, x]) for x, y in places} - {0}
    if not touched_parts:
        return values
    sizes = np.bincount(parts.flat, minlength=count + 1)
    most_pixels = max(sizes[k] for k in touched_parts)
    kept_parts = [k for k in range(1, count + 1) if k in touched_parts or sizes[k] >= 0.2 * most_pixels]
    return np.where((parts == 0) | np.isin(parts, kept_parts), values, 0.0)
