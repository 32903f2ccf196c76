"""The curve of accuracy against time: budgets are kept, settings come back, the knee is where it was drawn."""

from __future__ import annotations

import pytest

from training.benchmark.cost.anytime import COARSE, UNLIMITED, Point, anytime_curve, anytime_text, knee
from training.benchmark.cost.subjects import open_network
from training.datasets import open_set

pytestmark = pytest.mark.slow

NARROW = (
    "INPUT.MIN_SIZE_TEST",
    "72",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "0.0",
    "MODEL.TRANSFINER.TEST_MIN_BOX_PX",
    "0.0",
    "MODEL.TRANSFINER.THRESHOLDS_TEST",
    "[0.4, 0.99, 0.99]",
    "MODEL.TRANSFINER.KEEP_COARSE",
    "True",
    "TEST.DETECTIONS_PER_IMAGE",
    "3",
)


def test_each_budget_is_spent_and_the_settings_come_back() -> None:
    network, cfg = open_network(config="released/scenes-small", overrides=NARROW)
    before = network.roi_heads.mask_head.settings
    points = anytime_curve(network, cfg, open_set("scenes:val:2", width=96, height=72), [50, 10])
    assert [point.budget for point in points] == [COARSE, 10, 50, UNLIMITED]
    assert [point.nodes for point in points[:3]] == [0, 10, 50]
    assert points[3].nodes > 50
    assert network.roi_heads.mask_head.settings == before
    assert all(0 <= point.boundary_ap <= 1 for point in points)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budgets are \[0\]"):
        anytime_curve(None, None, [], [0])  # type: ignore[arg-type]


CURVE = [Point(-1, 0, 1.0, 0.5, 0.40), Point(500, 500, 1.2, 0.55, 0.48), Point(2000, 2000, 2.0, 0.56, 0.49)]
CURVE = [*CURVE, Point(0, 9000, 5.0, 0.56, 0.50)]


def test_the_knee_is_the_point_after_which_time_buys_little() -> None:
    assert knee(CURVE).budget == 500
    table = anytime_text(CURVE)
    assert next(line for line in table.splitlines() if "knee" in line).split()[0] == "500"


def test_where_time_buys_nothing_the_fastest_is_the_knee() -> None:
    assert knee([Point(-1, 0, 1.0, 0.5, 0.4), Point(0, 100, 2.0, 0.5, 0.3)]).budget == -1
