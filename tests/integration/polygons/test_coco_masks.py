"""On real masks: at least 20 % fewer vertices than Douglas-Peucker at the same tolerance, and never invalid.

The annotations are third-party data: without them (TRANSFINER_SHARED_DATA) the test is skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import shapely
from pycocotools import mask as coco_mask

from integration.polygons.contours import exact_polygons
from integration.polygons.convert import outline_mask, polygons_to_mask
from tests.integration.polygons.hausdorff import deviation_px

SHARED = Path(os.environ.get("TRANSFINER_SHARED_DATA", "../shared/data"))
ANNOTATIONS = SHARED / "coco_tiny" / "annotations" / "instances_val2017.json"


def every(number: int) -> list[np.ndarray]:
    if not ANNOTATIONS.exists():
        pytest.skip(f"no annotations at {ANNOTATIONS}: set TRANSFINER_SHARED_DATA")
    records = json.loads(ANNOTATIONS.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in records["images"]}
    masks = []
    for annotation in records["annotations"][::number]:
        runs = coco_mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        runs = coco_mask.merge(runs) if isinstance(runs, list) else runs  # crowds are run lengths already
        masks.append(coco_mask.decode(runs).astype(np.bool_))
    return masks


def test_real_masks() -> None:
    ours = theirs = 0
    for mask in every(12):
        exact, outline = exact_polygons(mask), outline_mask(mask, tolerance_px=1.0)
        assert np.array_equal(polygons_to_mask(exact, *mask.shape), mask)
        assert shapely.MultiPolygon([shapely.Polygon(p.exterior, p.holes) for p in outline]).is_valid
        assert deviation_px(outline, exact) <= 1.0 + 1e-6
        ours += sum(polygon.vertex_count for polygon in outline)
        for polygon in exact:
            shape = shapely.Polygon(polygon.exterior, polygon.holes).simplify(1.0)
            theirs += sum(len(ring.coords) - 1 for ring in (shape.exterior, *shape.interiors))
    assert ours <= 0.8 * theirs
