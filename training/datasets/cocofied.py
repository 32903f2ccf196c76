"""LVIS cut to COCO's 80 categories, the ground truth of PointRend's AP*.

Source: detectron2's protocol: LVIS categories are kept by synset and take COCO's ids, with their annotations and their
places in the lists of absent and of not fully drawn categories; images stay. Categories that occur nowhere go.
"""

from __future__ import annotations

from typing import Any

from training.datasets.coco_categories import COCO_CATEGORIES

_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def cocofied(lvis: dict[str, Any]) -> dict[str, Any]:
    """The cut file of an LVIS file (v0.5 for the published numbers: v1's val has images outside COCO val2017)."""
    coco_of = {synset: number for number, _, synset in COCO_CATEGORIES}
    kept = {one["id"]: coco_of[one["synset"]] for one in lvis["categories"] if one["synset"] in coco_of}
    images = [
        one | {name: [kept[number] for number in one[name] if number in kept] for name in _LISTS}
        for one in lvis["images"]
    ]
    chosen = [one for one in lvis["annotations"] if one["category_id"] in kept]
    annotations = [one | {"category_id": kept[one["category_id"]], "id": index} for index, one in enumerate(chosen, 1)]
    used = {one["category_id"] for one in annotations}
    used |= {number for one in images for name in _LISTS for number in one[name]}
    categories = [one | {"id": kept[one["id"]]} for one in lvis["categories"] if kept.get(one["id"]) in used]
    return lvis | {"images": images, "annotations": annotations, "categories": categories}
