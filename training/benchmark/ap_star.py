"""AP*, the tables' LVIS column: predictions of COCO's classes under LVIS's rules and finer outlines."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from training.benchmark.rows import DataSet
from training.datasets.coco_categories import COCO_CATEGORIES
from training.evaluation.coco_format import load_quietly
from training.evaluation.lvis_ap import lvis_ap

Json = dict[str, Any]


def ap_star(data: DataSet, truth: Json, found: list[Json], class_names: tuple[str, ...]) -> dict[str, float]:
    """LVIS AP by name; empty where the set has no LVIS annotations.

    Args:
        data: with the LVIS file of the test images, or of generated scenes, which are annotated completely.
        truth: of the test set as COCO has it. found: its COCO results, classes counted from 1 in ``class_names``.

    Raises:
        ValueError: the LVIS file is not reduced to COCO's classes, or a class is not one of COCO's.
    """
    if data.lvis and Path(data.lvis).is_file():
        dataset = load_quietly(Path(data.lvis)).dataset
        return lvis_ap(dataset, renumbered(found, dataset, class_names), "segm")
    if not data.test.startswith("scenes:"):
        return {}
    return lvis_ap(as_lvis(truth), found, "segm")


def renumbered(found: list[Json], dataset: Json, class_names: tuple[str, ...]) -> list[Json]:
    """Results with COCO's category numbers, on the file's images and of its categories alone.

    A category that occurs nowhere in the file has no AP there, and its predictions count for nothing.
    """
    number_of = {name: number for number, name, _ in COCO_CATEGORIES}
    strange = [name for name in class_names if name not in number_of]
    if strange:
        raise ValueError(f"AP* needs COCO's classes, the test set has {strange[0]!r}; leave out the LVIS annotations")
    listed = {one["id"] for one in dataset["categories"]}
    if not listed <= set(number_of.values()):
        raise ValueError(
            f"the LVIS annotations have {len(listed)} categories, some not COCO's; AP* needs the file that is reduced "
            "to COCO's classes (transfiner data prepare lvis-cocofied)"
        )
    images = {one["id"] for one in dataset["images"]}
    numbered = (one | {"category_id": number_of[class_names[one["category_id"] - 1]]} for one in found)
    return [one for one in numbered if one["image_id"] in images and one["category_id"] in listed]


def as_lvis(dataset: Json) -> Json:
    """A completely annotated COCO set as LVIS sees one: categories an image has not are known to be absent."""
    result = copy.copy(dataset)
    everything = {one["id"] for one in dataset["categories"]}
    present: dict[int, set[int]] = {}
    for one in dataset["annotations"]:
        present.setdefault(one["image_id"], set()).add(one["category_id"])
    result["images"] = [
        image
        | {
            "neg_category_ids": sorted(everything - present.get(image["id"], set())),
            "not_exhaustive_category_ids": [],
        }
        for image in dataset["images"]
    ]
    result["categories"] = [{"frequency": "f"} | one for one in dataset["categories"]]
    return result
