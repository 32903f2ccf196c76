"""The simulated annotator: does what is needed, keeps region ids, and ends at the truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from backend.devtools.rehearsal.plan import Plan, material_of, number_of, photograph_plan, tiny_plan, write_test_set
from backend.devtools.rehearsal.project import correct, draw_regions, poison_regions
from integration.regions.read import regions_to_objects
from training.synthetic.scenes import NEW_CLASS, SHIFTED_CLASSES, generate_shifted_scene

HEIGHT, WIDTH = 60, 80


def square(left: int, top: int, edge: int = 20) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + edge, left : left + edge] = True
    return mask


def shown(label: str, mask: np.ndarray, region_id: str) -> list[dict]:
    return draw_regions(label, mask, WIDTH, HEIGHT, region_id)


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
    correction = correct(prediction, truth)
    assert correction.actions[expected] == 1
    objects = regions_to_objects(correction.result).objects
    assert [(object.label, bool((object.mask_hw == truth[0][1]).all())) for object in objects] == [("gear", True)]
    if expected != "added":
        assert correction.result[0]["id"] == "p1", "the region keeps its id"
    assert correction.actions["deleted"] == (1 if expected == "added" and prediction else 0)


def test_nothing_is_there():
    correction = correct(shown("gear", square(1, 1), "p1"), [])
    assert correction.result == []
    assert correction.actions["deleted"] == 1


def test_a_scene_is_corrected_to_its_truth_whatever_was_shown():
    scene = generate_shifted_scene(3)
    correction = correct([], scene.instances)
    objects = regions_to_objects(correction.result).objects
    assert sorted(object.label for object in objects) == sorted(label for label, _ in scene.instances)
    assert correction.lead_time_s > 25 * len(scene.instances)
    second = correct(correction.result, scene.instances)
    assert second.actions["kept"] == len(scene.instances)


def test_poison_shifts_every_mask_and_swaps_every_label():
    scene = generate_shifted_scene(3)
    false = poison_regions(scene.instances, SHIFTED_CLASSES)
    for (false_label, false_mask), (label, mask) in zip(false, scene.instances, strict=True):
        assert false_label != label
        assert (false_mask != mask).any()


def test_the_shifted_domain_has_a_class_that_the_shipped_model_lacks():
    labels = {label for seed in range(8) for label, _ in generate_shifted_scene(seed).instances}
    assert NEW_CLASS in labels
    assert labels <= set(SHIFTED_CLASSES)
    again = generate_shifted_scene(5)
    assert (again.image == generate_shifted_scene(5).image).all()
    with pytest.raises(ValueError, match="at least 64 x 64"):
        generate_shifted_scene(1, width=10)


def test_a_plan_knows_its_pictures():
    plan = tiny_plan({})
    assert material_of(plan).pool(0).image.shape == (plan.height, plan.width, 3)
    assert number_of("/data/upload/3/1a2b3c4d-pool-0007.png") == 7
    with pytest.raises(ValueError, match=r"expected .*pool"):
        number_of("/data/upload/3/cat.png")
    with pytest.raises(ValueError, match="are too few"):
        Plan(rounds=3, per_round=20, pool=79)


def photographs(folder, count, width=400, height=200):
    folder.mkdir()
    entries = {}
    for number in range(count):
        Image.new("RGB", (width, height), (number, 0, 0)).save(folder / f"{number}.png")
        square = {"name": "rect", "x": 40, "y": 40, "width": 80, "height": 40}
        entries[str(number)] = {"filename": f"{number}.png", "regions": [{"shape_attributes": square}]}
    (folder / "via_region_data.json").write_text(json.dumps(entries))
    return f"via:{folder}:balloon"


def test_photographs_take_the_place_of_drawn_pictures(tmp_path):
    train, test = photographs(tmp_path / "train", 8), photographs(tmp_path / "test", 2)
    plan = photograph_plan(train, test, rounds=1)
    assert (plan.pool, plan.per_round, plan.test) == (8, 4, 2)
    material = material_of(plan)
    assert material.classes == ("balloon",)
    assert {material.pool(number).image[0, 0, 0] for number in range(8)} == set(range(8))
    ((label, mask_hw),) = material.pool(3).instances
    assert (label, mask_hw.shape) == ("balloon", (192, 384))
    assert mask_hw.sum() == pytest.approx(80 * 40 * 0.96**2, rel=0.05)
    holdout = json.loads((write_test_set(material, 2, tmp_path / "written") / "holdout.json").read_text())
    assert [category["name"] for category in holdout["categories"]] == ["balloon"]
    assert holdout["images"][0]["width"] == 384
    with pytest.raises(ValueError, match="has 8 photographs, the plan takes 9"):
        material_of(photograph_plan(train, test, rounds=1, pool=9))
