"""Leave out parts of a mask, and fill holes, that cost more to delete by hand than they are worth.

What is a crumb depends on the object: a spot of 40 pixels is noise beside a fork and half of a distant button.

Shapes: H, W mask size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_SIDES_AND_CORNERS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class CrumbRule:
    """What is too small to keep: below a number of pixels, or below a share of the object's area.

    Attributes:
        part_px: least pixels of a part. part_share: least area of a part / area of the largest one.
        hole_px: least pixels of a hole. hole_share: least area of a hole / area of the object.
    """

    part_px: float = 16.0
    part_share: float = 0.0
    hole_px: float = 16.0
    hole_share: float = 0.0


def remove_crumbs(mask_hw: np.ndarray, rule: CrumbRule) -> np.ndarray:
    """Apply a rule to a mask (bool, H x W): parts first, then holes of what is left.

    Parts that touch with a corner count as one; holes are connected by sides. Empty when even the largest part is
    smaller than `part_px`.
    """
    labels, _ = ndimage.label(mask_hw, _SIDES_AND_CORNERS)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    kept_hw: np.ndarray = (areas >= max(rule.part_px, rule.part_share * areas.max(), 1))[labels]
    background, _ = ndimage.label(~np.pad(kept_hw, 1))
    areas = np.bincount(background.ravel())
    is_small = areas < max(rule.hole_px, rule.hole_share * np.count_nonzero(kept_hw))
    is_small[[0, background[0, 0]]] = False  # the mask itself, and the outside
    return kept_hw | is_small[background[1:-1, 1:-1]]


def reach_border(mask_hw: np.ndarray, border_px: int) -> np.ndarray:
    """Let a mask (bool, H x W) that comes as close as `border_px` to the image's border go on to it.

    Networks see little of the border's last pixels, and boxes end before it.
    """
    if not border_px or min(mask_hw.shape) <= 2 * border_px:
        return mask_hw
    reached_hw = mask_hw.copy()
    for side in (reached_hw, reached_hw[::-1], reached_hw.T, reached_hw.T[::-1]):
        side[:border_px] |= side[border_px]
    return reached_hw
