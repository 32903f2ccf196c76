"""Annotated tasks as COCO, LVIS-style and YOLO-seg: as many annotations as objects, exactly as they are stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from integration.label_studio.label_config import Output
from integration.label_studio.tasks import read_task
from integration.polygons.contours import Polygon
from integration.polygons.convert import polygons_to_mask
from integration.regions.export import Export, export_tasks
from integration.regions.shapes import ShapeError, decode_bitmask, encode_bitmask, encode_brush_mask
from model.instance import iou
from tests.support.regions import instance, predict, ring

HEIGHT, WIDTH = 40, 60
SIZE = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}


SQUARE = {"points": [[60, 60], [90, 60], [90, 90], [60, 90]], "closed": True}


def two_parts() -> np.ndarray:
    mask_hw = np.zeros((HEIGHT, WIDTH), bool)
    mask_hw[22:34, 4:20] = mask_hw[24:36, 26:50] = True
    return mask_hw


def circle() -> np.ndarray:
    radius_px = np.hypot(*np.mgrid[-12.0:28, -40.0:20])
    return (radius_px < 11) & (radius_px > 5)


def predicted(mask_hw: np.ndarray, label: str = "car", **output: Any) -> list[dict[str, Any]]:
    settings = Output(**{"tolerance_px": 0, "min_area_px": 0, "kind": "polygon", **output})
    return predict([instance(mask_hw, label=label)], output=settings, seed=label + str(mask_hw.sum()))[0]["result"]


def region(kind: str, value: dict[str, Any], label: str = "car", region_id: str = "r1") -> dict[str, Any]:
    return {"id": region_id, "type": f"{kind}labels", "from_name": kind, "to_name": "image", **SIZE,
            "value": {**value, f"{kind}labels": [label]}}  # fmt: skip


def task(*results: list[dict[str, Any]], number: int = 1, image: str = "/data/upload/1/abc-one.jpg") -> dict[str, Any]:
    annotations = [
        {"id": 10 * number + n, "completed_by": n, "updated_at": f"2026-01-0{n + 1}T00:00:00Z", "result": result}
        for n, result in enumerate(results)
    ]
    return {"id": number, "data": {"image": image}, "annotations": annotations}


def exported(*rows: dict[str, Any], **how: Any) -> Export:
    return export_tasks(map(read_task, json.loads(json.dumps(rows))), ("car", "tree"), "image", **how)


def decoded(segmentation: Any) -> np.ndarray:
    if isinstance(segmentation, list):
        return polygons_to_mask([Polygon(np.array(part).reshape(-1, 2)) for part in segmentation], HEIGHT, WIDTH)
    return coco_mask.decode(segmentation).astype(bool)


def test_a_two_part_object_and_a_ring_are_two_annotations() -> None:
    masks = [two_parts(), circle()]
    result = predicted(masks[0], "car") + predicted(masks[1], "Oak")
    assert len(result) == 2
    export = exported(task(result))
    coco = export.as_coco()
    assert len(coco["annotations"]) == 2
    assert [a["category_id"] for a in coco["annotations"]] == [1, 2]
    assert len(coco["annotations"][0]["segmentation"]) == 2  # a polygon each part
    assert "counts" in coco["annotations"][1]["segmentation"]  # a hole
    for annotation, mask_hw in zip(coco["annotations"], masks, strict=True):
        assert iou(decoded(annotation["segmentation"]), mask_hw) == 1.0
        assert annotation["area"] == mask_hw.sum()
        left, top, width, height = annotation["bbox"]
        assert mask_hw[top : top + height, left : left + width].sum() == mask_hw.sum()
        assert annotation["iscrowd"] == 0
    assert export.fidelity()["least_iou"] == 1.0
    assert coco["images"] == [{"id": 1, "file_name": "abc-one.jpg", "width": WIDTH, "height": HEIGHT, "task_id": 1}]


def test_parts_as_separate_regions_are_one_object_too() -> None:
    result = predicted(two_parts(), parts="separate")
    assert len(result) == 2
    export = exported(task(result))
    assert (export.objects, export.regions, export.polygon_regions) == (1, 2, 2)
    (annotation,) = export.as_coco()["annotations"]
    assert iou(decoded(annotation["segmentation"]), two_parts()) == 1.0


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_masks_keep_every_pixel(kind: str) -> None:
    value = (
        {"format": "rle", "rle": encode_brush_mask(ring())}
        if kind == "brush"
        else {"imageDataURL": encode_bitmask(ring())}
    )
    export = exported(task([region(kind, value)]))
    (annotation,) = export.as_coco()["annotations"]
    assert np.array_equal(decoded(annotation["segmentation"]), ring())
    assert export.polygon_regions == 0
    line = export.as_yolo()["labels/abc-one.txt"].split()
    points = np.array(line[1:], float).reshape(-1, 2) * [WIDTH, HEIGHT]
    assert np.array_equal(polygons_to_mask([Polygon(points.round(4))], HEIGHT, WIDTH), ring())


def test_yolo_has_a_line_an_object_and_a_file_an_image() -> None:
    result = predicted(two_parts(), "car") + predicted(circle(), "Oak")
    files = exported(task(result), task([], result, number=2, image="s3://bucket/two.png")).as_yolo()
    assert sorted(files) == ["data.yaml", "labels/abc-one.txt", "labels/two.txt"]
    lines = files["labels/abc-one.txt"].splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]
    for line, mask_hw in zip(lines, (two_parts(), circle()), strict=True):
        points = np.array(line.split()[1:], float).reshape(-1, 2) * [WIDTH, HEIGHT]
        assert np.array_equal(polygons_to_mask([Polygon(points.round(4))], HEIGHT, WIDTH), mask_hw)
    assert "  0: 'car'\n  1: 'tree'\n" in files["data.yaml"]


def test_crowds_are_marked_or_left_out() -> None:
    crowd = [
        *predicted(two_parts()),
        {"id": predicted(two_parts())[0]["id"], "type": "choices", "from_name": "what", "to_name": "image", **SIZE,
         "value": {"choices": ["Crowd"]}},
    ]  # fmt: skip
    export = exported(task(crowd + predicted(circle(), "Oak")))
    first, second = export.as_coco()["annotations"]
    assert (first["iscrowd"], second["iscrowd"]) == (1, 0)
    assert np.array_equal(decoded(first["segmentation"]), two_parts())
    lvis = export.as_lvis()
    assert [annotation["id"] for annotation in lvis["annotations"]] == [1]
    assert lvis["images"][0]["not_exhaustive_category_ids"] == [1]
    assert lvis["images"][0]["neg_category_ids"] == []
    assert [category["frequency"] for category in lvis["categories"]] == ["r", "r"]
    assert [category["instance_count"] for category in lvis["categories"]] == [0, 1]
    assert len(export.as_yolo()["labels/abc-one.txt"].splitlines()) == 1


def test_the_newest_annotation_counts_or_the_agreement() -> None:
    first, other, third = predicted(two_parts()), predicted(two_parts()), predicted(circle())
    assert exported(task(first, other, third)).objects == 1
    agreed = exported(task(first, other, third), annotators="agreement")
    obj, disputed = agreed.images[0].objects
    assert np.array_equal(obj.mask_hw, two_parts())
    assert disputed.is_crowd  # else its place would be background
    assert np.array_equal(disputed.mask_hw, circle())
    assert [entry.reason for entry in agreed.left_out] == ["3 annotators do not agree on it: a crowd"]


def test_what_cannot_be_exported_is_said() -> None:
    rows = [
        task(number=1),
        task([], number=2),
        task([region("polygon", {"points": [[5, 5], [50, 50]]}), region("polygon", SQUARE, "dog", "r2")], number=3),
        task([region("brush", {"format": "rle", "rle": [1]})], number=4),
    ]
    export = exported(*rows)
    assert [entry.task_id for entry in export.left_out] == [1, 2, 3, 3, 4, 4]
    assert all(entry.reason for entry in export.left_out)
    # A place without a readable outline, or of an unknown label, is no background: a crowd of each class.
    (image,) = export.images
    assert [(obj.label, obj.is_crowd) for obj in image.objects] == [("car", True), ("tree", True)]
    assert image.objects[0].mask_hw[2:20, 3:30].all()
    assert image.objects[0].mask_hw[24:36, 36:54].all()


def test_equal_file_names_are_told_apart() -> None:
    rows = [task(predicted(circle()), number=n, image=f"/data/local-files/?d=folder{n}/a.jpg") for n in (1, 2)]
    assert [image.file_name for image in exported(*rows).images] == ["a.jpg", "task-2-a.jpg"]
    assert [image.file_name for image in exported(*rows, *rows).images] == ["a.jpg", "task-2-a.jpg"]


def test_rle_everywhere_when_asked() -> None:
    (annotation,) = exported(task(predicted(two_parts())), segmentation="rle").as_coco()["annotations"]
    assert annotation["segmentation"]["size"] == [HEIGHT, WIDTH]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "expected a PNG"),
        ("data:image/png;base64,!!!", "no readable PNG"),
        ("data:image/png;base64,aGVsbG8=", "no readable PNG"),
        (encode_bitmask(np.ones((3, 4), bool)), "4 x 3, expected 60 x 40"),
        (encode_bitmask(np.ones((3, 4), bool)).rstrip("="), "4 x 3, expected 60 x 40"),
    ],
)
def test_broken_bitmasks_are_refused_with_a_reason(url: Any, reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        decode_bitmask(url, HEIGHT, WIDTH)
