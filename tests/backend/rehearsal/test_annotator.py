"""The simulated annotator: does what is needed, keeps region ids, and ends at the truth."""

from __future__ import annotations

import numpy as np
import pytest

from backend.rehearsal.annotator import correct, drawn, poisoned
from backend.rehearsal.pictures import number_of, pool_scene
from backend.rehearsal.plan import Plan, tiny_plan
from integration.annotations import regions_to_objects
from training.shifted_scenes import CLASSES, NEW_CLASS, generate_shifted_scene

HEIGHT, WIDTH = 60, 80


def square(left: int, top: int, edge: int = 20) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + edge, left : left + edge] = True
    return mask


def shown(label: str, mask: np.ndarray, region_id: str) -> list[dict]:
    return drawn(label, mask, WIDTH, HEIGHT, region_id)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        pytest.param(shown("gear", square(10, 10), "p1"), "kept", id="right"),
        pytest.param(shown("gear", square(13, 13), "p1"), "moved", id="off"),
        pytest.param(shown("star", square(10, 10), "p1"), "relabelled", id="another label"),
        pytest.param([], "added", id="nothing shown"),
        pytest.param(shown("gear", square(50, 30), "p1"), "added", id="somewhere else"),
    ],
)
def test_one_object(prediction, expected):
    truth = [("gear", square(10, 10))]
    done = correct(prediction, truth)
    assert done.actions[expected] == 1
    objects = regions_to_objects(done.result).objects
    assert [(one.label, bool((one.mask_hw == truth[0][1]).all())) for one in objects] == [("gear", True)]
    if expected != "added":
        assert done.result[0]["id"] == "p1", "the region keeps its id"
    assert done.actions["deleted"] == (1 if expected == "added" and prediction else 0)


def test_nothing_is_there():
    done = correct(shown("gear", square(1, 1), "p1"), [])
    assert done.result == []
    assert done.actions["deleted"] == 1


def test_a_scene_is_corrected_to_its_truth_whatever_was_shown():
    scene = generate_shifted_scene(3)
    done = correct([], scene.instances)
    objects = regions_to_objects(done.result).objects
    assert sorted(one.label for one in objects) == sorted(label for label, _ in scene.instances)
    assert done.lead_time_s > 25 * len(scene.instances)
    kept = correct(done.result, scene.instances)
    assert kept.actions["kept"] == len(scene.instances)


def test_poison_shifts_every_mask_and_swaps_every_label():
    scene = generate_shifted_scene(3)
    false = poisoned(scene.instances, CLASSES)
    assert all(one[0] != other[0] for one, other in zip(false, scene.instances, strict=True))
    assert all((one[1] != other[1]).any() for one, other in zip(false, scene.instances, strict=True))


def test_the_shifted_domain_has_a_class_that_the_shipped_model_lacks():
    labels = {label for seed in range(8) for label, _ in generate_shifted_scene(seed).instances}
    assert NEW_CLASS in labels
    assert labels <= set(CLASSES)
    again = generate_shifted_scene(5)
    assert (again.image == generate_shifted_scene(5).image).all()
    with pytest.raises(ValueError, match="at least 64 x 64"):
        generate_shifted_scene(1, width=10)


def test_a_plan_knows_its_pictures():
    plan = tiny_plan({})
    assert pool_scene(plan, 0).image.shape == (plan.height, plan.width, 3)
    assert number_of("/data/upload/3/1a2b3c4d-pool-0007.png") == 7
    with pytest.raises(ValueError, match=r"expected .*pool"):
        number_of("/data/upload/3/cat.png")
    with pytest.raises(ValueError, match="are too few"):
        Plan(rounds=3, per_round=20, pool=79)
