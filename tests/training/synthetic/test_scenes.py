"""Generated scenes: the same seed gives the same picture; masks are what is visible."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from tests.support.miniature import write_scenes
from training.synthetic.scenes import CLASSES, SPLITS, generate_scene, scene_seed
from training.synthetic.shapes import SHAPES

SIZE = {"width": 160, "height": 120}


def test_same_seed_same_scene() -> None:
    first, two = generate_scene(5, **SIZE), generate_scene(5, **SIZE)
    assert np.array_equal(first.image, two.image)
    assert [label for label, _ in first.instances] == [label for label, _ in two.instances]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first.instances, two.instances, strict=True))
    assert not np.array_equal(first.image, generate_scene(6, **SIZE).image)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_masks_are_visible_disjoint_and_named(seed: int) -> None:
    scene = generate_scene(seed, **SIZE, least_area_px=40)
    assert scene.image.shape == (120, 160, 3)
    assert scene.image.dtype == np.uint8
    together = np.zeros((120, 160), int)
    for label, mask in scene.instances:
        assert label in CLASSES
        assert mask.shape == (120, 160)
        assert mask.dtype == np.bool_
        assert mask.sum() >= 40
        together += mask
    assert together.max(initial=0) <= 1


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_outlines_stay_within_their_unit_square(name: str) -> None:
    for seed in range(40):
        outline = SHAPES[name](np.random.default_rng(seed))
        points = np.concatenate(outline.solids)
        assert np.isfinite(points).all()
        assert np.abs(points).max() <= 1.3  # bent stalks may stick out a little


def test_splits_are_disjoint() -> None:
    seeds = [scene_seed(split, index) for split in SPLITS for index in (0, 7, 999_999_999)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("split", "index", "message"), [("test", 0, "unknown split"), ("train", -1, "outside"), ("train", 10**9, "outside")]
)
def test_bad_scene_numbers_are_refused(split: str, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene_seed(split, index)


def test_too_small_a_scene_is_refused() -> None:
    with pytest.raises(ValueError, match="64 x 64"):
        generate_scene(0, width=32, height=100)


def test_written_scenes_are_a_coco_set_with_the_same_masks(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    scene_files = write_scenes(tmp_path, "val", range(3, 5), **SIZE)
    coco = COCO(str(scene_files.annotations))
    capsys.readouterr()
    scene = generate_scene(scene_seed("val", 4), **SIZE)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[4]))
    assert [CLASSES[annotation["category_id"] - 1] for annotation in annotations] == [
        label for label, _ in scene.instances
    ]
    for annotation, (_, mask) in zip(annotations, scene.instances, strict=True):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
    with Image.open(scene_files.images[1]) as picture:
        assert np.array_equal(np.asarray(picture), scene.image)
    assert len(json.loads(scene_files.annotations.read_text())["images"]) == 2
