"""Small generated sets in the exact layouts of COCO, LVIS, Cityscapes and BDD100K: folders, names, fields, ids.

The six kinds of generated objects stand in for official categories. Everything that an evaluation must treat
specially occurs: COCO crowds as run lengths, LVIS's absent and not fully drawn categories, Cityscapes' groups, void and
tiny instances, BDD100K's ignored and crowded instances.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from training.datasets.preparation import COCO_CATEGORIES
from training.metrics.bdd100k import merged
from training.synthetic.scenes import CLASSES, Scene, generate_scene, scene_seed

LAYOUTS = ("coco", "lvis", "cityscapes", "bdd100k")
COCO_STAND_INS = (3, 16, 44, 74, 48, 87)  # car, bird, bottle, mouse, fork, scissors
CITYSCAPES_STAND_INS = (26, 24, 33, 25, 28, 32)
BDD100K_STAND_INS = (3, 1, 8, 2, 5, 7)
Drawn = list[tuple[str, Scene]]


def write_miniature(
    layout: str, root: Path, *, train: int = 4, val: int = 4, width: int = 320, height: int = 240
) -> dict[str, str]:
    """Write a set; returns the names under which `open_set` opens its splits.

    Raises:
        ValueError: unknown layout.
    """
    writers: dict[str, Callable[[Path, str, list[Scene]], str]] = {
        "coco": _write_coco,
        "lvis": _write_lvis,
        "cityscapes": _write_cityscapes,
        "bdd100k": _write_bdd100k,
    }
    if layout not in writers:
        raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    names = {}
    for split, count in (("train", train), ("val", val)):
        seeds = [scene_seed(split, index) for index in range(count)]
        scenes = [generate_scene(seed, width=width, height=height) for seed in seeds]
        names[split] = writers[layout](root, split, scenes)
    return names


def _write_coco(root: Path, split: str, scenes: list[Scene]) -> str:
    dataset = _coco_dataset(split, scenes, COCO_STAND_INS)
    dataset["categories"] = [
        {"supercategory": "stand-in", "id": number, "name": name} for number, name, _ in COCO_CATEGORIES
    ]
    for index, annotation in enumerate(dataset["annotations"]):
        mask = annotation.pop("mask")
        annotation["iscrowd"] = int(index % 7 == 3)
        annotation["segmentation"] = _run_lengths(mask)
        if not annotation["iscrowd"]:
            annotation["segmentation"] = _polygons(mask) or annotation["segmentation"]
    _store_images(root / f"{split}2017", dataset, scenes)
    file = root / "annotations" / f"instances_{split}2017.json"
    _store(file, dataset)
    return f"coco:{file}:{root / f'{split}2017'}"


def _write_lvis(root: Path, split: str, scenes: list[Scene]) -> str:
    """As LVIS v0.5 lies over COCO's images; two categories are LVIS's alone."""
    dataset = _coco_dataset(split, scenes, COCO_STAND_INS)
    synsets = [(name, synset) for _, name, synset in COCO_CATEGORIES] + [
        ("acorn", "acorn.n.01"),
        ("zucchini", "zucchini.n.02"),
    ]
    numbers = {name: index for index, (name, _) in enumerate(sorted(synsets), 1)}
    names = {number: name for number, name, _ in COCO_CATEGORIES}
    rng = np.random.default_rng(len(scenes))
    for annotation in dataset["annotations"]:
        mask, annotation["category_id"] = annotation.pop("mask"), numbers[names[annotation["category_id"]]]
        annotation["segmentation"] = _polygons(mask) or [_rectangle(annotation["bbox"])]
        del annotation["iscrowd"]
    for image in dataset["images"]:
        there = {a["category_id"] for a in dataset["annotations"] if a["image_id"] == image["id"]}
        absent = sorted({numbers[names[number]] for number in COCO_STAND_INS} | {numbers["acorn"]} - there)
        image["neg_category_ids"] = [number for number in absent if number not in there and rng.random() < 0.6]
        image["not_exhaustive_category_ids"] = [number for number in sorted(there) if rng.random() < 0.3]
        image["file_name"] = f"COCO_val2014_{image['file_name']}"
    dataset["categories"] = [_lvis_category(numbers[name], name, synset, dataset) for name, synset in sorted(synsets)]
    _store_images(root / f"{split}2017", dataset, scenes)
    file = root / f"lvis_v0.5_{split}.json"
    _store(file, dataset)
    return f"lvis:{file}:{root / f'{split}2017'}"


def _lvis_category(number: int, name: str, synset: str, dataset: dict[str, Any]) -> dict[str, Any]:
    images = [annotation["image_id"] for annotation in dataset["annotations"] if annotation["category_id"] == number]
    return {
        "id": number,
        "name": name.replace(" ", "_"),
        "synset": synset,
        "synonyms": [name],
        "def": f"stand-in: {name}",
        "frequency": "rcf"[number % 3],
        "image_count": len(set(images)),
        "instance_count": len(images),
    }


def _coco_dataset(split: str, scenes: list[Scene], stand_ins: tuple[int, ...]) -> dict[str, Any]:
    """COCO's records; `mask` of an annotation is still to be turned into a segmentation."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes, 1):
        height, width = scene.image.shape[:2]
        name = f"{index:012d}.jpg"
        address = f"http://images.cocodataset.org/{split}2017/{name}"
        images.append(
            {
                "id": index,
                "file_name": name,
                "height": height,
                "width": width,
                "license": 1,
                "coco_url": address,
                "flickr_url": "",
                "date_captured": "2017-01-01 00:00:00",
            }
        )
        for label, mask in scene.instances:
            packed = rle.encode(np.asfortranarray(mask, np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": stand_ins[CLASSES.index(label)],
                    "area": float(rle.area(packed)),
                    "bbox": rle.toBbox(packed).tolist(),
                    "iscrowd": 0,
                    "mask": mask,
                }
            )
    info = {"description": "generated miniature", "version": "1.0", "year": 2017, "contributor": "", "url": ""}
    licence = {"id": 1, "name": "generated", "url": ""}
    return {"info": info, "licenses": [licence], "images": images, "annotations": annotations, "categories": []}


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE, as COCO stores crowds."""
    flat = np.concatenate(([0], mask.ravel(order="F").astype(np.int8), [0]))
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate(([0], edges, [mask.size])))
    return {"size": list(mask.shape), "counts": [int(count) for count in counts]}


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a mask's parts without its holes, as people draw them."""
    from skimage.measure import approximate_polygon, find_contours

    outlines = (contour[:, ::-1] - 0.5 for contour in find_contours(np.pad(mask, 1).astype(float), 0.5))
    drawn = []
    for outline in outlines:
        points = np.clip(approximate_polygon(outline, 0.4)[:-1], 0, mask.shape[::-1])
        x, y = points.T
        turned_px = float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))  # holes turn the other way
        if len(points) >= 3 and turned_px < -8:
            drawn.append(points.round(2).ravel().tolist())
    return drawn


def _rectangle(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x, y + height, x + width, y + height, x + width, y]


def _store_images(folder: Path, dataset: dict[str, Any], scenes: list[Scene]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image, scene in zip(dataset["images"], scenes, strict=True):
        Image.fromarray(scene.image).save(folder / image["file_name"][-16:], quality=95)


def _store(file: Path, dataset: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dataset))


def _write_cityscapes(root: Path, split: str, scenes: list[Scene]) -> str:
    city = "miniature"
    for index, scene in enumerate(scenes):
        name = f"{city}_{index:06d}_000019"
        ids = cityscapes_ids(scene, index)
        for folder, ending, picture in (
            ("leftImg8bit", "leftImg8bit", Image.fromarray(scene.image)),
            ("gtFine", "gtFine_instanceIds", Image.fromarray(ids.astype(np.uint16))),
            ("gtFine", "gtFine_labelIds", Image.fromarray(np.where(ids < 1000, ids, ids // 1000).astype(np.uint8))),
        ):
            path = root / folder / split / city / f"{name}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return f"cityscapes:{root}:{split}"


def cityscapes_ids(scene: Scene, index: int) -> np.ndarray:
    """Instance ids of a scene: road below, void at the edge, and on some scenes a group and a tiny instance."""
    ids = np.full(scene.image.shape[:2], 7, np.int64)  # road
    ids[:, :12] = 3  # out of region of interest
    for number, (label, mask) in enumerate(scene.instances):
        known = CITYSCAPES_STAND_INS[CLASSES.index(label)]
        group = index % 3 == 1 and number == 0
        ids[mask] = known if group else known * 1000 + number
    ids[-7:, -9:] = 26_500  # 63 px: below the least that counts
    return ids


def _write_bdd100k(root: Path, split: str, scenes: list[Scene]) -> str:
    for index, scene in enumerate(scenes):
        name = f"miniature-{index:08d}"
        picture = root / "images" / "10k" / split / f"{name}.jpg"
        bitmask = root / "labels" / "ins_seg" / "bitmasks" / split / f"{name}.png"
        for path in (picture, bitmask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(picture, quality=95)
        Image.fromarray(bdd100k_bitmask(scene, index)).save(bitmask)
    return f"bdd100k:{root}:{split}"


def bdd100k_bitmask(scene: Scene, index: int) -> np.ndarray:
    """Bitmask of a scene; on some scenes the first object is ignored or a crowd."""
    bitmask = np.zeros((*scene.image.shape[:2], 4), np.uint8)
    for number, (label, mask) in enumerate(scene.instances, 1):
        attributes = (0, 1, 2, 3)[index % 4] if number == 1 else 0
        known = BDD100K_STAND_INS[CLASSES.index(label)]
        bitmask[mask] = (known, attributes, number >> 8, number & 255)
    return bitmask


@dataclass(frozen=True, slots=True)
class WrittenScenes:
    """What lies on the disk: image files, their annotation file, and how many objects it lists."""

    images: tuple[Path, ...]
    annotations: Path
    instances: int


def write_scenes(
    folder: Path, split: str, indices: Sequence[int], *, width: int = 384, height: int = 288
) -> WrittenScenes:
    """Write scenes into ``folder/images`` and ``folder/instances.json``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[Path] = []
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in indices:
        scene = generate_scene(scene_seed(split, index), width=width, height=height)
        path = folder / "images" / f"{split}-{index:06d}.png"
        Image.fromarray(scene.image).save(path)
        images.append(path)
        records.append({"id": index, "file_name": path.name, "height": height, "width": width})
        annotations += [_scene_annotation(index, label, mask) for label, mask in scene.instances]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return WrittenScenes(tuple(images), path, len(annotations))


def _scene_annotation(image_id: int, label: str, mask_hw: np.ndarray) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask_hw, dtype=np.uint8))
    segmentation = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
    measures = {"area": int(rle.area(encoded)), "bbox": rle.toBbox(encoded).tolist(), "iscrowd": 0}
    return {"image_id": image_id, "category_id": CLASSES.index(label) + 1, "segmentation": segmentation} | measures


def write_predictions(
    folder: Path, name: str, masks: Sequence[np.ndarray], labels: Sequence[int], scores: Sequence[float]
) -> None:
    """Write one image's detections as Cityscapes' server takes them; `name` as in frankfurt_000000_000294."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (mask, label, score) in enumerate(zip(masks, labels, scores, strict=True)):
        file = f"{name}_{index}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / file)
        lines.append(f"{file} {label} {score}\n")
    (folder / f"{name}.txt").write_text("".join(lines))


class PredictionWriter:
    """Writes detections as BDD100K's server takes them: bitmasks/NAME.png, and scores.json when closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: list[dict[str, Any]] = []
        (folder / "bitmasks").mkdir(parents=True, exist_ok=True)

    def add(self, name: str, masks: np.ndarray, categories: Sequence[int], scores: Sequence[float]) -> None:
        """One image's detections: bool N x H x W, BDD100K category numbers from 1, scores; `name` without ending."""
        Image.fromarray(merged(masks, categories, scores)).save(self.folder / "bitmasks" / f"{name}.png")
        labels = [{"index": index, "score": float(score)} for index, score in enumerate(scores, 1)]
        self._listed.append({"name": f"{name}.jpg", "labels": labels})

    def close(self) -> None:
        """Write the scores."""
        (self.folder / "scores.json").write_text(json.dumps(self._listed))
