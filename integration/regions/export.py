"""Annotated tasks as data sets that other tools read: COCO, LVIS-style and YOLO-seg.

One object is one annotation, however many regions, parts and holes it is drawn with: cuts of no width are undone, parts
that name a parent are joined. Label Studio's own COCO export writes one annotation for each polygon and leaves brush
masks out (measured on 1.23.2).

    part or hole            COCO, LVIS                                  YOLO-seg
    several parts           a polygon each                              one polygon, parts joined by cuts
    holes                   run-length code: COCO polygons have none    one polygon, holes joined by cuts
    brush, bitmask          run-length code                             outlines along the edges of pixels
    crowd                   run-length code, iscrowd 1; LVIS: left      left out
                            out, the category is not exhaustive there
    what cannot be read,    as a crowd, of every class where its        left out
    what is disputed        class is not known

Shapes: H, W image size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pycocotools import mask as coco_mask

from integration.label_studio.label_config import LabelConfig
from integration.label_studio.tasks import (
    AnnotatedTask,
    Annotation,
    Choice,
    LeftOut,
    chosen_annotations,
    distinct_tasks,
)
from integration.polygons.contours import Polygon, exact_polygons
from integration.polygons.convert import polygons_to_mask
from integration.polygons.joining import join_polygons, split_ring
from integration.regions.read import AnnotatedObject, read_drawings, vote
from model.instance import box_of, iou

Json = dict[str, Any]
CROWD = "crowd"
_NO_SIZE = "it has no region that tells the size of its image"


@dataclass(frozen=True, slots=True, eq=False)
class ExportedObject:
    """One object of an image that is exported.

    Attributes:
        mask_hw: bool, H x W, as it is stored in Label Studio.
        is_crowd: many objects in one region.
    """

    label: str
    mask_hw: np.ndarray
    polygons: tuple[Polygon, ...] | None
    is_crowd: bool = False

    @property
    def has_coco_polygons(self) -> bool:
        """Whether COCO's polygons, which have no holes, can represent it exactly."""
        return self.polygons is not None and not self.is_crowd and not any(polygon.holes for polygon in self.polygons)


@dataclass(frozen=True, slots=True, eq=False)
class ExportedImage:
    """One image with its objects."""

    task_id: int
    file_name: str
    width: int
    height: int
    objects: tuple[ExportedObject, ...]


@dataclass(slots=True)
class Export:
    """A data set to write, and what was left out of it.

    Attributes:
        regions: outlines that were read; polygon_regions: how many of them are polygons.
        segmentation: "auto" writes polygons where they are exact, "rle" run-length code everywhere.
    """

    classes: tuple[str, ...]
    images: list[ExportedImage] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    regions: int = 0
    polygon_regions: int = 0
    segmentation: str = "auto"

    @property
    def objects(self) -> int:
        """Objects of all images."""
        return sum(len(image.objects) for image in self.images)

    def as_coco(self) -> Json:
        """COCO's instances format; ids count from 1."""
        annotations: list[Json] = []
        for image_id, image in enumerate(self.images, start=1):
            for instance in image.objects:
                annotations.append(
                    self._annotation(len(annotations) + 1, image_id, instance) | {"iscrowd": int(instance.is_crowd)}
                )
        return {
            "info": {"description": "exported from Label Studio by transfiner"},
            "images": [_image_record(image_id, image) for image_id, image in enumerate(self.images, start=1)],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in enumerate(self.classes, start=1)],
        }

    def as_lvis(self) -> Json:
        """LVIS' format: categories with their frequency, images with the categories they are known not to show."""
        coco = self.as_coco()
        crowds: dict[int, set[int]] = {}
        for annotation in coco["annotations"]:
            if annotation["iscrowd"]:
                crowds.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
        annotations = [annotation for annotation in coco["annotations"] if not annotation["iscrowd"]]
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
            del annotation["iscrowd"]
        present: dict[int, set[int]] = {}
        for annotation in annotations:
            present.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
        all_ids = set(range(1, len(self.classes) + 1))
        for image in coco["images"]:
            crowd_ids = crowds.get(image["id"], set())
            shown_ids = present.get(image["id"], set())
            image["not_exhaustive_category_ids"] = sorted(crowd_ids)
            image["neg_category_ids"] = sorted(all_ids - shown_ids - crowd_ids)
        instances = Counter(annotation["category_id"] for annotation in annotations)
        images = Counter(category for categories in present.values() for category in categories)
        categories = [
            {
                **category,
                "synset": category["name"],
                "synonyms": [category["name"]],
                "def": "",
                "instance_count": instances[category["id"]],
                "image_count": images[category["id"]],
                "frequency": _frequency(images[category["id"]]),
            }
            for category in coco["categories"]
        ]
        return coco | {"annotations": annotations, "categories": categories}

    def as_yolo(self) -> dict[str, str]:
        """Contents of YOLO-seg's files by name: data.yaml, and a label file for each image, empty without objects."""
        names = "\n".join(f"  {number}: {_yaml_text(name)}" for number, name in enumerate(self.classes))
        files = {"data.yaml": f"path: .\ntrain: images\nval: images\nnames:\n{names}\n"}
        for image in self.images:
            lines = [
                _yolo_line(self.classes.index(instance.label), instance, image.width, image.height)
                for instance in image.objects
                if not instance.is_crowd
            ]
            files[f"labels/{Path(image.file_name).stem}.txt"] = "".join(line + "\n" for line in lines)
        return files

    def fidelity(self) -> Json:
        """IoU of what is written with the regions as stored: mean and least, by this project's rule and COCO's."""
        ious, coco_ious = [], []
        for image in self.images:
            for instance in image.objects:
                written_hw = _written_mask(instance, image.height, image.width)
                ious.append(iou(written_hw, instance.mask_hw))
                segmentation = self._segmentation(instance)
                if isinstance(segmentation, list):
                    rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, image.height, image.width))
                    coco_ious.append(iou(coco_mask.decode(rle).astype(bool), instance.mask_hw))
                else:
                    coco_ious.append(1.0)
        return {
            "mean_iou": float(np.mean(ious)) if ious else 1.0,
            "least_iou": min(ious, default=1.0),
            "mean_iou_pycocotools": float(np.mean(coco_ious)) if coco_ious else 1.0,
            "least_iou_pycocotools": min(coco_ious, default=1.0),
        }

    def _annotation(self, number: int, image_id: int, instance: ExportedObject) -> Json:
        left, top, right, bottom = box_of(instance.mask_hw)
        return {
            "id": number,
            "image_id": image_id,
            "category_id": self.classes.index(instance.label) + 1,
            "segmentation": self._segmentation(instance),
            "area": int(np.count_nonzero(instance.mask_hw)),
            "bbox": [left, top, right - left, bottom - top],
        }

    def _segmentation(self, instance: ExportedObject) -> list[list[float]] | Json:
        if instance.polygons is not None and instance.has_coco_polygons and self.segmentation == "auto":
            return [polygon.exterior.round(4).ravel().tolist() for polygon in instance.polygons]
        rle = coco_mask.encode(np.asfortranarray(instance.mask_hw, dtype=np.uint8))
        return {"size": [int(length) for length in rle["size"]], "counts": rle["counts"].decode()}


def export_tasks(
    tasks: Iterable[AnnotatedTask],
    classes: Sequence[str],
    value_key: str,
    *,
    config: LabelConfig | None = None,
    annotators: Choice = "latest",
    crowd_labels: Sequence[str] = (),
    segmentation: str = "auto",
) -> Export:
    """Read the objects of annotated tasks.

    Args:
        config: the label config; entries of other controls are left out. None: any outline counts.
        annotators: which of several annotations of a task count; see `chosen_annotations`.
        crowd_labels: labels, or choices a region, that mean many objects in one region.
    """
    crowd_names = {CROWD, *(name.casefold() for name in crowd_labels)}
    export = Export(tuple(name for name in classes if name.casefold() not in crowd_names), segmentation=segmentation)
    file_names: Counter[str] = Counter()
    for task in distinct_tasks(tasks):
        export.left_out += task.left_out
        if not task.annotations:
            export.left_out.append(LeftOut(task.id, None, "", "nobody has submitted an annotation"))
            continue
        annotations = chosen_annotations(task.annotations, annotators)
        size = _image_size(annotations)
        if size is None:
            export.left_out.append(LeftOut(task.id, annotations[-1].id, "", _NO_SIZE))
            continue
        objects = _read(export, task, annotations, size, config, crowd_names)
        if objects is None:
            continue
        name = _file_name(str(task.data.get(value_key, "")), task)
        file_names[name] += 1
        if file_names[name] > 1:
            name = f"task-{task.id}-{name}"
        export.images.append(ExportedImage(task.id, name, *size, tuple(objects)))
    return export


def _read(
    export: Export,
    task: AnnotatedTask,
    annotations: Sequence[Annotation],
    size: tuple[int, int],
    config: LabelConfig | None,
    crowd_names: set[str],
) -> list[ExportedObject] | None:
    """The objects of a task; what is neither object nor background, as crowds; None if no background is known."""
    width, height = size
    drawings, ignored, nowhere = [], list[AnnotatedObject](), 0
    for annotation in annotations:
        drawing = read_drawings(annotation.result, width=width, height=height, config=config, labels=export.classes)
        drawings.append(drawing.objects)
        ignored += drawing.ignored
        nowhere += drawing.nowhere
        export.left_out += [LeftOut(task.id, annotation.id, region, reason) for region, reason in drawing.left_out]
        export.left_out += [LeftOut(task.id, annotation.id, *note, is_lost=False) for note in drawing.notes]
        kinds = [kind for instance in drawing.objects for kind in instance.kinds]
        export.regions += len(kinds)
        export.polygon_regions += kinds.count("polygon")
    if nowhere:
        reason = f"{nowhere} of its outlines cannot be read, and where they lie is not known"
        export.left_out.append(LeftOut(task.id, annotations[-1].id, "", reason))
        return None
    objects: Sequence[AnnotatedObject] = drawings[0]
    anywhere_hw = np.any([instance.mask_hw for instance in ignored], axis=0)
    crowds = [(label, anywhere_hw) for label in export.classes if ignored]
    if len(drawings) > 1:
        consensus = vote(drawings)
        objects = consensus.objects
        crowds += [(instance.label, instance.mask_hw) for instance in consensus.disputed]
        reason = f"{len(annotations)} annotators do not agree on it: a crowd"
        export.left_out += [LeftOut(task.id, None, instance.region_ids[0], reason) for instance in consensus.disputed]
    entries = [entry for annotation in annotations for entry in annotation.result]
    exported_objects = [_export_object(instance, entries, width, height, crowd_names) for instance in objects]
    return exported_objects + [ExportedObject(label, mask_hw, None, is_crowd=True) for label, mask_hw in crowds]


def _export_object(
    instance: AnnotatedObject, entries: Sequence[Mapping[str, Any]], width: int, height: int, crowd_names: set[str]
) -> ExportedObject:
    object_entries = [entry for entry in entries if str(entry.get("id", "")) in instance.region_ids]
    polygons = _polygons(object_entries, width, height) if set(instance.kinds) == {"polygon"} else None
    # Parts that overlap, or a vote that changed pixels: then the mask counts.
    if polygons is not None and not np.array_equal(polygons_to_mask(polygons, height, width), instance.mask_hw):
        polygons = None
    is_crowd = any(name.casefold() in crowd_names for entry in object_entries for name in _choices(entry))
    return ExportedObject(instance.label, instance.mask_hw, polygons, is_crowd)


def _polygons(entries: Sequence[Mapping[str, Any]], width: int, height: int) -> tuple[Polygon, ...]:
    """The parts of the polygons among some entries, with their cuts undone; each region once."""
    rings = {str(entry.get("id")): entry["value"]["points"] for entry in entries if "points" in entry.get("value", {})}
    parts: list[Polygon] = []
    for points in rings.values():
        parts += split_ring(np.round(np.array(points, dtype=np.float64) * [width, height] / 100, 4))
    return tuple(parts)


def _choices(entry: Mapping[str, Any]) -> list[str]:
    value = entry.get("value")
    names = value.get("choices") if isinstance(value, Mapping) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _written_mask(instance: ExportedObject, height: int, width: int) -> np.ndarray:
    if instance.polygons is None:
        return instance.mask_hw
    return polygons_to_mask(instance.polygons, height, width)


def _image_size(annotations: Sequence[Annotation]) -> tuple[int, int] | None:
    for annotation in annotations:
        for entry in annotation.result:
            try:
                size = int(entry["original_width"]), int(entry["original_height"])  # other tools write 640.0 or "640"
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            if min(size) > 0:
                return size
    return None


def _file_name(address: str, task: AnnotatedTask) -> str:
    """The name of the image's file, without folders."""
    parts = urlsplit(address)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    name = path.rpartition("/")[2] if parts.scheme != "data" else ""
    return name or task.file_name.rpartition("/")[2] or f"task-{task.id}"


def _image_record(image_id: int, image: ExportedImage) -> Json:
    size = {"width": image.width, "height": image.height}
    return {"id": image_id, "file_name": image.file_name, **size, "task_id": image.task_id}


def _frequency(images: int) -> str:
    """LVIS' rare, common or frequent."""
    return "r" if images <= 10 else "c" if images <= 100 else "f"


def _yolo_line(number: int, instance: ExportedObject, width: int, height: int) -> str:
    polygons = instance.polygons if instance.polygons is not None else exact_polygons(instance.mask_hw)
    ring = np.clip(join_polygons(polygons) / [width, height], 0, 1)
    return f"{number} " + " ".join(f"{value:.8g}" for value in ring.ravel())


def _yaml_text(text: str) -> str:
    text = text.replace("'", "''")
    return f"'{text}'"
