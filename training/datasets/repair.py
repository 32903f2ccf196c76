"""A repaired copy of a set, in COCO's format.

Shapes: H, W size of an image in pixels.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from model.files import write_text
from model.images import read_header
from training.datasets.bitmaps import BitmapSet
from training.datasets.coco import CocoSet
from training.datasets.coco_records import Record, is_ignored
from training.datasets.sample import ImageLeftOutError
from training.metrics.coco import compressed


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
            source, record, image, image_annotations = _readable(samples, index)
        except ImageLeftOutError:
            continue
        height, width = image.shape[:2]
        name = _copied(source, image, pictures, names)
        images.append(record | {"file_name": name, "height": height, "width": width})
        annotations += [
            {"id": number, "image_id": record["id"], **annotation}
            for number, annotation in enumerate(image_annotations, len(annotations) + 1)
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
        annotations = [
            _annotation(annotation, mask_hw, samples.category_ids[label])
            for annotation, label, mask_hw in samples.objects(image_id, image)
        ]
        return samples.image_path(image_id), samples.records.images[image_id], image, annotations
    sample = samples[index]
    annotations = [
        _annotation({"segmentation": None, "iscrowd": crowd, "ignored": None}, mask_hw, int(label) + 1)
        for mask_hw, label, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True)
    ]
    return samples.files[index], {"id": index + 1}, sample.image, annotations


def _copied(source: Path, image: np.ndarray, folder: Path, names: set[str]) -> str:
    """Copy a picture into `folder` under a name that is not in `names`; the name."""
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
    segmentation, is_crowd = annotation["segmentation"], is_ignored(annotation)
    rle = coco_mask.encode(np.asfortranarray(mask_hw, np.uint8))
    if not isinstance(segmentation, list) or is_crowd or not _draws(segmentation, mask_hw):
        segmentation = {"size": list(mask_hw.shape), "counts": rle["counts"].decode()}
    return {key: value for key, value in annotation.items() if key not in _OWN_FIELDS} | {
        "category_id": category_id,
        "segmentation": segmentation,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(mask_hw.sum()),
        "iscrowd": int(is_crowd),
    }


def _draws(polygons: list[list[float]], mask_hw: np.ndarray) -> bool:
    """Whether polygons lie in the image and give exactly this mask."""
    height, width = mask_hw.shape
    points = np.concatenate([np.array(polygon, float).reshape(-1, 2) for polygon in polygons])
    if points.min() < 0 or (points.max(0) > (width, height)).any():
        return False
    return bool((coco_mask.decode(compressed(polygons, height, width)).astype(bool) == mask_hw).all())
