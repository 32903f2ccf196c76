"""Regions of recorded tasks and odd masks, and back to the same masks."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from integration.label_studio.label_config import Output
from integration.regions.read import regions_to_objects
from integration.regions.write import Reason
from tests.support.regions import EXACT, RECORDINGS, instance, predict


def recorded_tasks() -> dict[tuple[str, int], dict[str, Any]]:
    """Tasks of recorded /predict requests, by label config and id."""
    tasks = {}
    for path in sorted(RECORDINGS.glob("*.json")):
        for exchange in json.loads(path.read_text()).get("exchanges", []):
            if exchange["request"]["path"] == "/predict":
                body = exchange["request"]["json"]
                tasks.update({(body["label_config"], task["id"]): task for task in body["tasks"]})
    return tasks


@pytest.mark.parametrize("kind", ["auto", "all"])
def test_every_recorded_task_gets_a_valid_answer(kind: Any) -> None:
    tasks = recorded_tasks()
    assert len(tasks) > 10
    for (label_config, task_id), task in tasks.items():
        prediction, report = predict(
            [instance(label="Person"), instance(label="zebra")],
            label_config,
            output=Output(kind=kind),
            seed=f"{task_id}:{task['data']['image']}",
        )
        assert report.shown == 1
        assert prediction["result"]


@given(
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)),
    st.sampled_from(["polygon", "brush"]),
)
def test_exact_regions_come_back_as_the_same_mask(mask_hw: np.ndarray, kind: Any) -> None:
    height, width = mask_hw.shape
    output = replace(EXACT, kind=kind)
    prediction, report = predict([instance(mask_hw)], width=width, height=height, output=output)
    if not mask_hw.any():
        assert report.dropped == {Reason.TOO_SMALL: 1}
        return
    stored = json.loads(json.dumps(prediction["result"]))
    (decoded,) = regions_to_objects(stored).objects
    assert np.array_equal(decoded.mask_hw, mask_hw)


@pytest.mark.parametrize("size", [(640, 426), (4031, 3023), (333, 9999)])
def test_odd_sizes_lose_nothing_in_percent(size: tuple[int, int]) -> None:
    width, height = size
    mask_hw = np.zeros((height, width), dtype=bool)
    rng = np.random.default_rng(7)
    mask_hw[-60:, -50:] = rng.random((60, 50)) < 0.8
    prediction, _ = predict([instance(mask_hw)], width=width, height=height, output=EXACT)
    (decoded,) = regions_to_objects(prediction["result"]).objects
    assert np.array_equal(decoded.mask_hw, mask_hw)


def test_the_default_tolerance_stays_close() -> None:
    disc = np.hypot(*np.mgrid[-200:200, -200:200]) < 150
    disc &= ~(np.hypot(*np.mgrid[-200:200, -200:200]) < 60)
    prediction, _ = predict([instance(disc)], width=400, height=400)
    (decoded,) = regions_to_objects(prediction["result"]).objects
    assert (decoded.mask_hw & disc).sum() / (decoded.mask_hw | disc).sum() > 0.98
