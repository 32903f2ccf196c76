"""Cityscapes and BDD100K rows are measured by those sets' own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.miniature import write_miniature
from training.benchmark.measurement import official_rules
from training.datasets import open_set


@pytest.mark.parametrize(("layout", "columns"), [("cityscapes", {"AP", "AP50", "APB", "APB50"}), ("bdd100k", {"AP"})])
def test_the_truth_as_detections_scores_one(layout: str, columns: set[str], tmp_path: Path) -> None:
    samples = open_set(write_miniature(layout, tmp_path, train=1, val=2)["val"])
    rules = official_rules(samples)
    assert rules is not None
    for index in range(len(samples)):
        sample = samples[index]
        alone = ~sample.crowd
        scores = 0.9 - 0.01 * sample.classes[alone]
        rules.add(index, sample.masks[alone], scores, sample.classes[alone])
    values = rules.values()
    assert set(values) == columns
    assert values["AP"] == pytest.approx(1, abs=0.02)


def test_generated_scenes_are_measured_by_cocos_rules() -> None:
    assert official_rules(open_set("scenes:val:1")) is None
