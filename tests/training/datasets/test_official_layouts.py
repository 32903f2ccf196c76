"""Official layouts end to end: written, opened, checked, prepared and scored; bad annotations are told and skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.miniature import LAYOUTS, PredictionWriter, write_miniature, write_predictions
from training.datasets import ImageLeftOutError, open_set
from training.datasets.check import data_set_contact_sheet, statistics
from training.datasets.preparation import cocofied, convert, inspect, set_names
from training.evaluation.score import score
from training.metrics.cityscapes import LABELS
from training.synthetic.scenes import generate_scene, scene_seed

SIZE = {"width": 128, "height": 96}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    sets_by_layout = {}
    for layout in LAYOUTS:
        root = tmp_path_factory.mktemp(layout)
        sets_by_layout[layout] = root, write_miniature(layout, root, train=1, val=4, **SIZE)["val"]
    return sets_by_layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_miniature_opens_and_shows_the_scenes(sets: dict[str, tuple[Path, str]], layout: str) -> None:
    samples = open_set(sets[layout][1])
    assert not samples.problems.lost
    assert len(samples) == 4
    for index in range(4):
        scene = generate_scene(scene_seed("val", index), **SIZE)
        sample = samples[index]
        assert sample.image.shape == (96, 128, 3)
        everything = np.any([mask for _, mask in scene.instances], axis=0)
        difference = sample.masks[:, :, :110].any(0) ^ everything[:, :110]  # Cityscapes adds a tiny car at the right
        assert difference[12:].mean() < (0.12 if layout in ("coco", "lvis") else 1e-9)  # outlines fill holes
        assert sample.classes.max() < len(samples.class_names)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_and_contact_sheet(sets: dict[str, tuple[Path, str]], layout: str) -> None:
    samples = open_set(sets[layout][1])
    figures = statistics(samples, range(4))
    assert figures["images"] == 4
    assert figures["objects"] == sum(figures["by_class"].values()) > 0
    assert not figures["problems"]
    assert (figures["crowds"] > 0) == (layout != "lvis")
    sheet = data_set_contact_sheet(samples, range(4), columns=2)
    assert sheet.size == (640, 508)
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000


def test_perfect_predictions_score_one_in_every_layout(sets: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    root, name = sets["cityscapes"]
    samples: Any = open_set(name)
    for index, file in enumerate(samples.files):
        sample = samples[index]
        labels = [list(LABELS.values())[label] for label in sample.classes]
        stem = file.name.removesuffix("_leftImg8bit.png")
        write_predictions(tmp_path / "cityscapes", stem, sample.masks, labels, [1.0] * len(labels))
    for metric in ("segm", "boundary"):
        figures = score(root / "gtFine" / "val", tmp_path / "cityscapes", metric, "cityscapes")
        assert figures.numbers["AP"] == pytest.approx(1)
    root, name = sets["bdd100k"]
    samples = open_set(name)
    writer = PredictionWriter(tmp_path / "bdd100k")
    for index, file in enumerate(samples.files):
        sample = samples[index]
        writer.add(file.stem, sample.masks, sample.classes + 1, [1.0] * len(sample.classes))
    writer.close()
    figures = score(root / "labels" / "ins_seg" / "bitmasks" / "val", tmp_path / "bdd100k", "segm", "bdd100k")
    assert figures.numbers["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("spoil", "kind", "outcome"),
    [
        ({"segmentation": [[1, 1, 5, 5, 9, 9]]}, "degenerate polygon", "ignored"),
        ({"segmentation": [[1, 1, 5]]}, "degenerate polygon", "ignored"),
        ({"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]}, "degenerate polygon", "ignored"),
        ({"segmentation": []}, "no mask", "ignored"),
        ({"segmentation": [], "bbox": None}, "no mask", "lost"),
        ({"segmentation": {"size": [96, 128], "counts": "zzz"}}, "broken mask", "ignored"),
        ({"segmentation": {"size": [96, 128], "counts": [5]}}, "broken mask", "ignored"),
        ({"bbox": [500, 1, 9, 9]}, "box outside", "kept"),
        ({"bbox": [5, 1, 0, 9]}, "box outside", "kept"),
        ({"category_id": 12}, "unknown category", "ignored"),
        ({"image_id": 77}, "unknown image", "lost"),
    ],
)
def test_bad_annotations_are_told_and_skipped_or_fatal(
    sets: dict[str, tuple[Path, str]], tmp_path: Path, spoil: dict[str, Any], kind: str, outcome: str
) -> None:
    root, _ = sets["coco"]
    dataset = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    dataset["annotations"][0] |= spoil
    number = dataset["annotations"][0]["id"]
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(dataset))
    name = f"coco:{file}:{root / 'val2017'}"
    samples = open_set(name)
    assert dict(samples.problems.counts()) == {kind: 1}
    assert f"bad.json: annotation {number}: {kind}" in str(samples.problems.entries[0])
    annotations = dataset["annotations"]
    ids = {category["id"] for category in dataset["categories"]}
    ignored_classes = 1 if annotations[0]["category_id"] in ids else len(ids)
    objects = sum(int((~sample.crowd).sum()) for sample in samples)
    crowds = sum(annotation["iscrowd"] for annotation in annotations)
    assert objects == len(annotations) - crowds - (outcome != "kept")
    assert sum(int(sample.crowd.sum()) for sample in samples) == crowds + ignored_classes * (outcome == "ignored")


@pytest.mark.parametrize("layout", ["coco", "cityscapes", "bdd100k"])
def test_missing_files_are_fatal_or_skipped(tmp_path: Path, layout: str) -> None:
    name = write_miniature(layout, tmp_path, train=0, val=2, **SIZE)["val"]
    pattern = {"coco": "val2017/*.jpg", "cityscapes": "gtFine/**/*instanceIds.png", "bdd100k": "labels/**/*.png"}[
        layout
    ]
    sorted(tmp_path.glob(pattern))[0].unlink()
    with pytest.raises(FileNotFoundError):
        list(open_set(name))
    samples = open_set(name, missing="skip")
    assert len(samples) == 1
    assert dict(samples.problems.counts()) == {"missing file": 1}


def test_unknown_labels_in_images_are_told(tmp_path: Path) -> None:
    city = write_miniature("cityscapes", tmp_path / "c", train=0, val=1, **SIZE)["val"]
    file = next((tmp_path / "c").rglob("*instanceIds.png"))
    ids = np.array(Image.open(file))
    ids[:20, -20:] = 40_001
    Image.fromarray(ids.astype(np.uint16)).save(file)
    samples = open_set(city)
    assert len(samples[0].classes)
    assert dict(samples.problems.counts()) == {"unknown category": 1}
    bdd = write_miniature("bdd100k", tmp_path / "b", train=0, val=1, **SIZE)["val"]
    file = next((tmp_path / "b").rglob("labels/**/*.png"))
    bitmask = np.array(Image.open(file))
    bitmask[:5, :5] = (3, 0, 0, 200)
    bitmask[5:9, :5] = (4, 0, 0, 200)
    Image.fromarray(bitmask).save(file)
    samples = open_set(bdd)
    with pytest.raises(ImageLeftOutError, match="two categories"):
        samples[0]
    assert dict(samples.problems.counts()) == {"broken mask": 1}


@pytest.mark.parametrize(
    ("layout", "folder"),
    [("coco", "coco"), ("lvis-cocofied", "lvis"), ("cityscapes", "cityscapes"), ("bdd100k", "bdd100k")],
)
def test_prepare_finds_miniatures_whole_and_says_what_is_missing(
    sets: dict[str, tuple[Path, str]], tmp_path: Path, layout: str, folder: str
) -> None:
    root, _ = sets[folder]
    assert all(finding.fine for finding in inspect(layout, root, any_size=True))
    assert any("official" in finding.problem for finding in inspect(layout, root))
    convert(layout, root)
    for name in set_names(layout, root):
        assert len(open_set(name))
    empty = inspect(layout, tmp_path)
    assert not any(finding.fine for finding in empty)
    assert all("ROOT" in finding.as_dict()["source"] for finding in empty)


def test_cocofied_lvis_keeps_cocos_categories_with_their_lists(sets: dict[str, tuple[Path, str]]) -> None:
    lvis = json.loads((sets["lvis"][0] / "lvis_v0.5_val.json").read_text())
    cut = cocofied(lvis)
    names = {category["id"]: category["name"] for category in cut["categories"]}
    assert len(cut["annotations"]) == len(lvis["annotations"])  # every stand-in is one of COCO's
    assert names.items() <= {3: "car", 16: "bird", 44: "bottle", 74: "mouse", 48: "fork", 87: "scissors"}.items()
    acorn = next(category["id"] for category in lvis["categories"] if category["name"] == "acorn")
    assert any(acorn in image["neg_category_ids"] for image in lvis["images"])
    for image in cut["images"]:
        assert set(image["neg_category_ids"]) | set(image["not_exhaustive_category_ids"]) <= names.keys()
