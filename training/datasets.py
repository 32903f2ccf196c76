"""Where training and evaluation samples come from: generated scenes and COCO-format sets, by one kind of name.

A set's name in ``DATASETS.TRAIN`` / ``DATASETS.TEST`` is ``scenes:SPLIT[:COUNT]`` or ``coco:ANNOTATIONS.json:IMAGES/``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.scenes import CLASSES, SPLITS, VERSION, generate_scene, scene_seed

ENDLESS = 1_000_000  # scenes of a split when no count is given: more than any run sees


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its truth.

    Attributes:
        image: RGB uint8, H x W x 3.
        masks: bool, N x H x W.
        classes: int64, N, indices into the set's classes.
        crowd: bool, N: regions of many objects; not trained on, ignored in evaluation.
        image_id: unique in its set.
    """

    image: np.ndarray
    masks: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    image_id: int


class SceneSet(Sequence[Sample]):
    """Generated scenes; each is drawn when asked for, once if there is a `cache` folder to keep it in."""

    def __init__(
        self,
        split: str,
        count: int = ENDLESS,
        *,
        width: int = 384,
        height: int = 288,
        cache: Path | None = None,
    ) -> None:
        scene_seed(split, 0)
        self.split, self.length, self.width, self.height = split, count, width, height
        self.cache = cache / f"{split}-{width}x{height}-v{VERSION}" if cache else None
        self.class_names: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        if self.cache is None:
            return self._draw(index)
        path = self.cache / f"{index:06d}.npz"
        if path.is_file():
            return _load(path, index)
        sample = self._draw(index)
        _store(path, sample)
        return sample

    def _draw(self, index: int) -> Sample:
        scene = generate_scene(scene_seed(self.split, index), width=self.width, height=self.height)
        masks = np.array([mask for _, mask in scene.instances], bool).reshape(-1, self.height, self.width)
        classes = np.array([CLASSES.index(label) for label, _ in scene.instances], np.int64)
        return Sample(scene.image, masks, classes, np.zeros(len(classes), bool), index)


def _store(path: Path, sample: Sample) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as file:
        np.savez(file, image=sample.image, bits=np.packbits(sample.masks, axis=-1), classes=sample.classes)
    unfinished.replace(path)


def _load(path: Path, index: int) -> Sample:
    with np.load(path) as stored:
        image, bits, classes = stored["image"], stored["bits"], stored["classes"]
    masks = np.unpackbits(bits, axis=-1, count=image.shape[1]).astype(bool)
    return Sample(image, masks, classes, np.zeros(len(classes), bool), index)


@dataclass
class CocoSet(Sequence[Sample]):
    """A set in COCO's format on disk; masks from polygons or either kind of RLE.

    Raises:
        FileNotFoundError: the annotation file or an image is missing; the message names it.
    """

    annotations: Path
    images: Path
    class_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.annotations.is_file():
            raise FileNotFoundError(
                f"no annotation file {self.annotations}; give coco:ANNOTATIONS.json:IMAGES/"
            )
        from training.evaluation.coco_format import load_quietly

        self._coco = load_quietly(self.annotations)
        self._image_ids = sorted(self._coco.getImgIds())
        categories = self._coco.loadCats(sorted(self._coco.getCatIds()))
        self.class_names = tuple(category["name"] for category in categories)
        self._class_of = {category["id"]: index for index, category in enumerate(categories)}

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        from PIL import Image, ImageOps

        image_id = self._image_ids[index]
        path = self.images / self._coco.loadImgs(image_id)[0]["file_name"]
        if not path.is_file():
            raise FileNotFoundError(f"image {image_id} of {self.annotations} is missing: {path}")
        with Image.open(path) as picture:
            image = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        found: list[dict[str, Any]] = self._coco.loadAnns(self._coco.getAnnIds(imgIds=[image_id]))
        masks = np.array([self._coco.annToMask(one) for one in found], bool).reshape(-1, *image.shape[:2])
        classes = np.array([self._class_of[one["category_id"]] for one in found], np.int64)
        crowd = np.array([bool(one.get("iscrowd", 0)) for one in found], bool)
        return Sample(image, masks, classes, crowd, int(image_id))


AnySet = SceneSet | CocoSet


def open_set(name: str, *, width: int = 384, height: int = 288, cache: Path | None = None) -> AnySet:
    """The set of a name; `width` and `height` are the size of generated scenes in pixels, `cache` where they are kept.

    Raises:
        ValueError: the name has another form; the message shows the two that are known.
    """
    kind, _, rest = name.partition(":")
    if kind == "scenes":
        split, _, count = rest.partition(":")
        if split in SPLITS and (not count or count.isdigit()):
            return SceneSet(split, int(count or ENDLESS), width=width, height=height, cache=cache)
    if kind == "coco" and ":" in rest:
        annotations, _, images = rest.partition(":")
        return CocoSet(Path(annotations), Path(images))
    splits = "|".join(SPLITS)
    raise ValueError(
        f"unknown data set {name!r}; write scenes:{splits}[:COUNT] or coco:ANNOTATIONS.json:IMAGES/"
    )
