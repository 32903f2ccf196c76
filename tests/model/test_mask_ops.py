"""Overlaps of masks, beside their definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.instance import box_of, iou, iou_matrix

masks = st.lists(arrays(np.bool_, (7, 9), elements=st.booleans(), fill=st.just(False)), max_size=3)


@settings(max_examples=50)
@given(masks, masks)
def test_iou_is_intersection_over_union(here: list[np.ndarray], there: list[np.ndarray]) -> None:
    overlaps = iou_matrix(here, there)
    assert overlaps.shape == (len(here), len(there))
    for row, mask in enumerate(here):
        for column, other in enumerate(there):
            union = (mask | other).sum()
            assert overlaps[row, column] == ((mask & other).sum() / union if union else 0)


def test_boxes_and_empty_masks() -> None:
    mask_hw = np.zeros((7, 9), bool)
    assert box_of(mask_hw) == (0, 0, 0, 0)
    assert iou(mask_hw, mask_hw) == 0
    mask_hw[2:4, 3:8] = True
    assert box_of(mask_hw) == (3, 2, 8, 4)
    assert iou(mask_hw, mask_hw) == 1
