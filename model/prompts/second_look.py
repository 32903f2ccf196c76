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
    may_repeat: Sequence[bool] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Refined and coarse probabilities of each view, (s, s) or of a large one (2s, 2s), and expected IoUs (V,).

    A large view's first mask is a coarse one: the nearer windows refine the outline.

    Args:
        is_mirrored: of the first look, see `look`.
        may_repeat: which views may be looked at again; all without it.
    """
    is_twice = [is_large(view) and (may_repeat is None or may_repeat[k]) for k, view in enumerate(views)]
    answers: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}
    for twice in (False, True):
        rows = [k for k, value in enumerate(is_twice) if value == twice]
        group, group_prompts = [views[k] for k in rows], [prompts[k] for k in rows]
        if not rows:
            continue
        refined, coarse, scores = look(
            network, image_rgb, group, group_prompts, device=device, is_mirrored=is_mirrored, refine=not twice
        )
        if twice:
            likely = [likely_values(*parts) for parts in zip(coarse, group, group_prompts, strict=True)]
            refined, coarse = second_look(network, image_rgb, group, np.stack(likely), device=device)
        answers |= {k: (refined[row], coarse[row], float(scores[row])) for row, k in enumerate(rows)}
    in_order = [answers[k] for k in range(len(views))]
    return [a[0] for a in in_order], [a[1] for a in in_order], np.array([a[2] for a in in_order], np.float32)


def second_look(
    network: PromptNetwork, image_rgb: np.ndarray, views: Sequence[View], values: np.ndarray, *, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Refined and coarse probabilities (V, 2s, 2s) of the views from those (V, s, s) of a first look."""
    side = FINER * values.shape[-1]
    first_values = resampled(values, (0, 0, 1, 1), (0, 0, 1, 1), (side, side))
    windows, masks = list[tuple[int, View]](), list[torch.Tensor]()
    for number, view in enumerate(views):
        for window in windows_of(view):
            window_values = resampled(values[number], view.box_xyxy, window.box_xyxy, (VIEW_SIDE, VIEW_SIDE))
            mask = window_values >= 0.5
            if mask.any() and not mask.all():
                windows.append((number, window))
                # The mask so far and nothing else.
                masks.append(prompt_maps(None, (), torch.from_numpy(mask.astype(np.float32))))
    if not windows:
        return first_values, first_values
    answers = look_at_maps(network, image_rgb, [window for _, window in windows], torch.stack(masks), device=device)
    weights, sums = np.zeros_like(first_values), np.zeros((2, *first_values.shape), first_values.dtype)
    fading = _fading(values.shape[-1])
    for refined, coarse, (number, window) in zip(*answers[:2], windows, strict=True):
        grids = np.stack([fading, fading * refined, fading * coarse])
        weight, *weighted = resampled(grids, window.box_xyxy, views[number].box_xyxy, (side, side))
        weights[number] += weight
        sums[:, number] += weighted
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


def _fading(side: int) -> np.ndarray:
    """Weights (s, s) of a window's places: small at its rim and one inside."""
    cells = np.arange(side)
    depth = (np.minimum(cells, cells[::-1]) + 0.5) / (RIM_SHARE * side)
    return np.minimum(1.0, np.minimum.outer(depth, depth)).astype(np.float32)
