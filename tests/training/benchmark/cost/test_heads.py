"""The authors' way of computing gives our masks, at more memory; nothing here measures time."""

from __future__ import annotations

import pytest

from training.benchmark.cost.comparison import CostSetting, compare_heads

pytestmark = pytest.mark.slow

NARROW = (
    "MODEL.BACKBONE.NAME",
    "build_efficientnet_lite_fpn_backbone",
    "MODEL.FPN.OUT_CHANNELS",
    "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "32",
    "MODEL.TRANSFINER.ENCODER_FFN_DIM",
    "64",
    "MODEL.RPN.CONV_DIMS",
    "[32]",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "32",
)
SETTING = CostSetting("released", height=64, width=96, overrides=NARROW, repeats=0)


def test_both_ways_give_the_same_masks_and_ours_needs_less() -> None:
    outcome = compare_heads(SETTING, instances=1, nodes=1500)
    assert outcome["largest_difference"] < 1e-4
    theirs = outcome["heads"]["authors_way"]["ratios"]
    assert theirs["peak_bytes"] > 2  # stored weights and whole grids
    assert theirs["flops"] == pytest.approx(1, abs=0.05)  # the same arithmetic
    assert outcome["heads"]["mask_rcnn"]["ratios"]["flops"] < 1
