"""A second look at large objects: nearer windows along the outline, each with the mask so far as its prompt.

A view has 128 x 128 places however large its object is, so the outline of a large one is drawn with wide strokes. Four
overlapping windows of a view show it 1.7 times larger; what they say takes the first look's place, fading towards
their rims where they overlap. Windows that the outline does not cross are not looked at.

Shape shorthand: V views, s = 128 the side of a view's probabilities, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.prompts.answers import Prompt, likely_values, look, look_at_maps
from model.prompts.network import VIEW_SIDE, PromptNetwork, prompt_maps
from model.prompts.views import View, resampled

#: Windows along each side of a view, and each one's share of that side.
WINDOWS, SHARE = 2, 0.6
#: The longer side of the smallest view that is looked at again, in pixels of the image. On 60 objects of `photos/val`
#: without DAVIS boundary IoU rose by 0.011 to 0.033 from there on, and fell below.
LEAST_SIDE_PX = 190.0
#: The answer's grid is so many times finer than a view's.
FINER = 2
#: Over so much of its side a window fades in from its rim.
RIM_SHARE = 0.1


def look_twice(
    network: PromptNetwork,
    image_rgb: np.ndarray,
    views: Sequence[View],
    prompts: Sequence[Prompt],
    *,
    device: torch.device,
    is_mirrored: bool = False,
    again: Sequence[bool] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Refined and coarse probabilities of each view, (s, s) or of a large one (2s, 2s), and expected IoUs (V,).

    A large view's first mask is a coarse one: the nearer windows refine the outline.

    Args:
        is_mirrored: of the first look, see `look`.
        again: which views may be looked at again; all without it.
    """
    refined: list[np.ndarray] = [np.zeros(0)] * len(views)
    coarse, scores = list(refined), np.zeros(len(views), np.float32)
    is_twice = [is_large(view) and (again is None or again[k]) for k, view in enumerate(views)]
    for twice in (False, True):
        indices = [k for k, value in enumerate(is_twice) if value == twice]
        if not indices:
            continue
        group_views, group_prompts = [views[k] for k in indices], [prompts[k] for k in indices]
        first = look(
            network, image_rgb, group_views, group_prompts, device=device, is_mirrored=is_mirrored, refine=not twice
        )
        grids = list(first[:2])
        if twice:
            likely = [
                likely_values(v, view, p) for v, view, p in zip(first[0], group_views, group_prompts, strict=True)
            ]
            grids = list(second_look(network, image_rgb, group_views, np.stack(likely), device=device))
        for row, k in enumerate(indices):
            refined[k], coarse[k], scores[k] = grids[0][row], grids[1][row], first[2][row]
    return refined, coarse, scores


def second_look(
    network: PromptNetwork, image_rgb: np.ndarray, views: Sequence[View], values: np.ndarray, *, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Refined and coarse probabilities (V, 2s, 2s) of the views from those (V, s, s) of a first look."""
    finer = FINER * values.shape[-1]
    first_values = np.stack([_on_grid(view, first, view, finer) for view, first in zip(views, values, strict=True)])
    windows = [
        (number, window)
        for number, view in enumerate(views)
        for window in windows_of(view)
        if _is_crossed(view, values[number], window)
    ]
    if not windows:
        return first_values, first_values
    maps = torch.stack([_mask_prompt(views[number], values[number], window) for number, window in windows])
    window_values = look_at_maps(network, image_rgb, [window for _, window in windows], maps, device=device)
    fading, weights = _fading(values.shape[-1]), np.zeros_like(first_values)
    sums = np.zeros((2, *first_values.shape), first_values.dtype)
    for row, (number, window) in enumerate(windows):
        weight = _on_grid(window, fading, views[number], finer)
        weights[number] += weight
        for kind in range(2):
            sums[kind, number] += weight * _on_grid(window, window_values[kind][row], views[number], finer)
    refined, coarse = np.where(weights > 0, sums / np.maximum(weights, 1e-6), first_values)
    return refined, coarse


def is_large(view: View) -> bool:
    """Whether a view is of an object large enough for a second look."""
    x0, y0, x1, y1 = view.box_xyxy
    return max(x1 - x0, y1 - y0) >= LEAST_SIDE_PX


def windows_of(view: View) -> list[View]:
    """The nearer windows of a view."""
    x0, y0, x1, y1 = view.box_xyxy
    width, height = SHARE * (x1 - x0), SHARE * (y1 - y0)
    lefts, tops = np.linspace(x0, x1 - width, WINDOWS), np.linspace(y0, y1 - height, WINDOWS)
    return [View((left, top, left + width, top + height), view.side) for top in tops for left in lefts]


def _is_crossed(view: View, values: np.ndarray, window: View) -> bool:
    mask = _on_grid(view, values, window, values.shape[-1]) >= 0.5
    return bool(mask.any() and not mask.all())


def _mask_prompt(view: View, values: np.ndarray, window: View) -> torch.Tensor:
    """Prompt maps (4, S, S) of a window: the mask so far and nothing else."""
    mask = _on_grid(view, values, window, VIEW_SIDE) >= 0.5
    return prompt_maps(None, (), torch.from_numpy(mask.astype(np.float32)))


def _on_grid(view: View, values: np.ndarray, other: View, side: int) -> np.ndarray:
    return resampled(values, view.box_xyxy, other.box_xyxy, (side, side))


def _fading(side: int) -> np.ndarray:
    """Weights (side, side) of a window's places, small at its rim and one inside."""
    places = np.arange(side)
    depth = (np.minimum(places, places[::-1]) + 0.5) / (RIM_SHARE * side)
    return np.minimum(1.0, np.minimum.outer(depth, depth)).astype(np.float32)
