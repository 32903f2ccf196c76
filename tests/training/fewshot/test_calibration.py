"""The score at which objects are shown."""

from __future__ import annotations

import numpy as np
import pytest

from training.fewshot.learn import score_power
from training.snapshots.format import encode_rle


def _mask(left: int) -> dict:
    mask = np.zeros((10, 40), bool)
    mask[2:8, left : left + 6] = True
    return encode_rle(mask)


TRUTH = [("cat", _mask(0)), ("cat", _mask(10))]


@pytest.mark.parametrize(
    ("detections", "threshold"),
    [
        ([["cat", 0.9, _mask(0)], ["cat", 0.8, _mask(10)], ["cat", 0.6, _mask(20)]], 0.7),
        ([["cat", 0.9, _mask(0)], ["dog", 0.8, _mask(10)], ["cat", 0.4, _mask(30)]], 0.85),
        ([["cat", 0.9, _mask(0)], ["cat", 0.8, _mask(0)], ["cat", 0.5, _mask(10)], ["cat", 0.3, _mask(30)]], 0.4),
        ([["cat", 0.9, _mask(20)]], 0.5),
        ([], 0.5),
    ],
    ids=["between right and wrong", "another class is wrong", "a double is wrong", "nothing right", "nothing"],
)
def test_one_half_is_where_right_and_wrong_part(detections: list, threshold: float) -> None:
    assert threshold ** score_power([(detections, TRUTH)]) == pytest.approx(0.5)
