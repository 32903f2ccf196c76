"""How many steps a finetuning takes, and wishes that cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from training.finetune.settings import FinetuneSettings


@pytest.mark.parametrize(
    ("wishes", "images", "share", "steps"),
    [
        pytest.param({}, 20, 1.0, 150, id="30 epochs of tens, 4 images a step"),
        pytest.param({}, 20, 0.5, 300, id="half of each step is replayed"),
        pytest.param({"epochs": 16}, 50, 1.0, 200, id="epochs of the caller's"),
        pytest.param({"epochs": 1}, 50, 1.0, 60, id="no fewer than the preset's fewest"),
        pytest.param({"epochs": 1000}, 50, 1.0, 600, id="no more than its most"),
        pytest.param({"epochs": 16, "batch_size": 8}, 50, 1.0, 100, id="larger steps"),
        pytest.param({"iterations": 7}, 5000, 1.0, 7, id="iterations as they are"),
        pytest.param({}, 5000, 1.0, 7500, id="6 epochs of thousands"),
    ],
)
def test_steps(wishes: dict[str, Any], images: int, share: float, steps: int) -> None:
    assert FinetuneSettings(**wishes).steps(images, share) == steps


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"iterations": 5, "epochs": 2}, r"iterations \(5\) or epochs \(2\), not both"),
        ({"epochs": 0}, "epochs is 0; it must be above 0"),
        ({"iterations": 0}, "iterations is 0; it must be 1 or more"),
        ({"preset": "dozens"}, "preset is 'dozens'; choose auto, tens"),
        ({"replay_share": 0.6, "base_share": 0.5}, "together below 1"),
    ],
)
def test_wishes_that_cannot_work(wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FinetuneSettings(**wishes)
