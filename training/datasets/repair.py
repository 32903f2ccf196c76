"""A repaired copy of a set, in COCO's format, and labels that look drawn carelessly.

Shapes: H, W size of an image in pixels; N objects.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from model.files import write_text
from model.images import read_header
from training.datasets.bitmaps import BitmapSet
from training.datasets.coco import CocoSet
from training.datasets.coco_records import Record, is_ignored
from training.datasets.problems import ImageLeftOutError, Problem
from training.datasets.sample import Sample

#: Two masks of one image that overlap by more than this IoU are one object drawn twice.
DUPLICATE_IOU = 0.9
#: A mask smaller than this share of its image, and than `SLIVER_PX` pixels, is a sliver.
SLIVER_SHARE, SLIVER_PX = 1e-4, 64


def write_repaired(samples: CocoSet | BitmapSet, folder: Path) -> dict[str, int]:
    """Write a set as ``annotations.json`` and ``images/``, holding what could be read, so that a check is clean.

    Images that cannot be used are left out, regions to ignore become crowds (one for each class where the class is
    unknown), boxes and areas are those of the masks, annotation ids are numbered anew. Polygons are kept where they
    lie in their image; what is cut or turned becomes run lengths. Pictures with an EXIF orientation are saved upright.

    Returns:
        How many images, annotations and left-out images there are.

    Raises:
        FileExistsError: `folder` holds something: a copy never overwrites.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder for the repaired copy")
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    images: list[Record] = []
    annotations: list[Record] = []
    names: set[str] = set()
    for index in range(len(samples)):
        try:
            source, record, image, drawn = _readable(samples, index)
        except ImageLeftOutError:
            continue
        height, width = image.shape[:2]
        name = _copied(source, image, pictures, names)
        images.append(record | {"file_name": name, "height": height, "width": width})
        annotations += [
            {"id": number, "image_id": record["id"], **annotation}
            for number, annotation in enumerate(drawn, len(annotations) + 1)
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(samples.class_names, 1)]
    if isinstance(samples, CocoSet):
        categories = [entry for entry in samples.records.categories if entry["id"] in samples.category_ids]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_text(folder / "annotations.json", json.dumps(content))
    left_out = len(samples) - len(images)
    return {"images": len(images), "annotations": len(annotations), "images_left_out": left_out}


def _readable(samples: CocoSet | BitmapSet, index: int) -> tuple[Path, Record, np.ndarray, list[Record]]:
    """File, record, pixels (H, W, 3) and annotations of an image. Raises ImageLeftOutError."""
    if isinstance(samples, CocoSet):
        image_id = samples.image_ids[index]
        image = samples.picture(image_id)
        repaired = [
            _annotation(annotation, mask_hw, samples.category_ids[label])
            for annotation, label, mask_hw in samples.objects(image_id, image)
        ]
        return samples.image_path(image_id), samples.records.images[image_id], image, repaired
    sample = samples[index]
    plain = [
        _annotation({"segmentation": None, "iscrowd": crowd, "ignored": None}, mask_hw, int(label) + 1)
        for mask_hw, label, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True)
    ]
    return samples.files[index], {"id": index + 1}, sample.image, plain


def _copied(source: Path, image: np.ndarray, folder: Path, names: set[str]) -> str:
    """Copy a picture under a name of its own, and give that name."""
    is_turned = read_header(source).orientation != 1
    suffix = ".png" if is_turned else source.suffix
    name, number = f"{source.stem}{suffix}", 2
    while name.casefold() in names:
        name, number = f"{source.stem}-{number}{suffix}", number + 1
    names.add(name.casefold())
    if is_turned:
        Image.fromarray(image).save(folder / name)
    else:
        shutil.copyfile(source, folder / name)
    return name


_OWN_FIELDS = ("place", "ignored", "box_inside", "every_class", "id", "image_id")


def _annotation(annotation: Record, mask_hw: np.ndarray, category_id: int) -> Record:
    drawn, ignored = annotation["segmentation"], is_ignored(annotation)
    packed = coco_mask.encode(np.asfortranarray(mask_hw, np.uint8))
    if not isinstance(drawn, list) or ignored or not _draws(drawn, mask_hw):
        drawn = {"size": list(mask_hw.shape), "counts": packed["counts"].decode()}
    return {key: value for key, value in annotation.items() if key not in _OWN_FIELDS} | {
        "category_id": category_id,
        "segmentation": drawn,
        "bbox": coco_mask.toBbox(packed).tolist(),
        "area": int(mask_hw.sum()),
        "iscrowd": int(ignored),
    }


def _draws(polygons: list[list[float]], mask_hw: np.ndarray) -> bool:
    """Whether polygons lie in the image and give exactly this mask."""
    height, width = mask_hw.shape
    points = np.concatenate([np.array(polygon, float).reshape(-1, 2) for polygon in polygons])
    if points.min() < 0 or (points.max(0) > (width, height)).any():
        return False
    packed = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return bool((coco_mask.decode(packed).astype(bool) == mask_hw).all())


def careless_labels(sample: Sample, samples: Any, index: int) -> Iterator[Problem]:
    """Name objects of a sample that look drawn carelessly: duplicates, slivers, and boxes drawn as polygons.

    They are warnings: nothing is left out because of them.
    """
    packed = [coco_mask.encode(np.asfortranarray(mask_hw, np.uint8)) for mask_hw in sample.masks]
    overlap = np.asarray(coco_mask.iou(packed, packed, [0] * len(packed))).reshape(len(packed), len(packed))
    smallest_px = min(SLIVER_PX, SLIVER_SHARE * sample.image.shape[0] * sample.image.shape[1])
    labels = [samples.class_names[label] for label in sample.classes]
    objects = np.flatnonzero(~sample.crowd)
    remarks: list[tuple[int, str, str]] = []
    for n in objects:
        for m in objects[(objects > n) & (overlap[n, objects] > DUPLICATE_IOU)]:
            detail = f"{labels[m]!r} lies on {labels[n]!r} with IoU {overlap[n, m]:.2f}; is it one object, drawn twice?"
            remarks.append((m, "duplicate object", detail))
        area_px = int(sample.masks[n].sum())
        if area_px < smallest_px:
            detail = f"{labels[n]!r} has {area_px} pixels, fewer than {smallest_px:.3g}; is it a slip of the mouse?"
            remarks.append((n, "sliver", detail))
    places = object_places(samples, sample) if remarks else []
    file = str(getattr(samples, "annotations", f"sample {index}"))
    for n, kind, detail in remarks:
        yield Problem(file, f"image {sample.image_id}, {places[n]}", kind, detail, repaired=True)
    for annotation in samples.records.annotations[sample.image_id] if isinstance(samples, CocoSet) else ():
        if not is_ignored(annotation) and _is_box(annotation["segmentation"]):
            detail = f"its polygon is the rectangle {annotation['segmentation'][0]}; draw the outline"
            place = f"image {sample.image_id}, {annotation['place']}"
            yield Problem(file, place, "box drawn as polygon", detail, repaired=True)


def object_places(samples: Any, sample: Sample) -> list[str]:
    """Name the objects of a sample: their annotations in a COCO file, else their numbers."""
    if isinstance(samples, CocoSet):
        return [annotation["place"] for annotation, *_ in samples.objects(sample.image_id, sample.image)]
    return [f"object {n}" for n in range(len(sample.masks))]


def _is_box(segmentation: Any) -> bool:
    """Whether a segmentation is one polygon with four corners and sides along the axes."""
    if not isinstance(segmentation, list) or len(segmentation) != 1:
        return False
    corners: np.ndarray = np.array(segmentation[0], float).reshape(-1, 2)
    if len(corners) == 5 and (corners[0] == corners[4]).all():
        corners = corners[:4]
    sides = np.roll(corners, -1, 0) - corners
    return len(corners) == 4 and bool(((sides == 0).sum(1) == 1).all())
