"""Where training and evaluation samples come from, by one kind of name.

========================================  ==================================================================
``scenes:SPLIT[:COUNT]``                  generated scenes (train, val, demo)
``coco:ANNOTATIONS.json:IMAGES/``         any set in COCO's format
``lvis:ANNOTATIONS.json:IMAGES/``         LVIS v0.5 or v1; the images are COCO's
``cityscapes:ROOT:SPLIT``                 ``leftImg8bit/`` and ``gtFine/`` below ROOT
``bdd100k:ROOT:SPLIT``                    ``images/10k/`` and ``labels/ins_seg/bitmasks/`` below ROOT
``via:FOLDER[:LABEL]``                    images beside the VGG Image Annotator's file, all of one class
========================================  ==================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.datasets.bitmaps import Bdd100kSet, BitmapSet, CityscapesSet
from training.datasets.coco import CocoSet, LvisSet
from training.datasets.sample import (
    BadAnnotationError,
    ImageLeftOutError,
    MadeSamples,
    Policy,
    Problem,
    Problems,
    Sample,
    usable_samples,
)
from training.datasets.via import ViaSet, annotation_file
from training.synthetic.scenes import CLASSES, SPLITS, generate_scene, scene_seed

if TYPE_CHECKING:  # sets need no torch
    from detectron2.config import CfgNode

__all__ = [
    "ENDLESS",
    "AnySet",
    "BadAnnotationError",
    "Bdd100kSet",
    "CityscapesSet",
    "CocoSet",
    "ImageLeftOutError",
    "LvisSet",
    "Problem",
    "Problems",
    "Sample",
    "SceneSet",
    "ViaSet",
    "open_configured_set",
    "open_set",
    "usable_samples",
]

ENDLESS = 1_000_000  # scenes of a split when no count is given: more than any run sees


class SceneSet(MadeSamples):
    """Generated scenes; each is drawn when it is read."""

    def __init__(self, split: str, count: int = ENDLESS, *, width: int = 384, height: int = 288) -> None:
        scene_seed(split, 0)
        super().__init__(range(count), self._drawn, CLASSES)
        self.split, self.width, self.height, self.problems = split, width, height, Problems()

    def _drawn(self, index: int) -> Sample:
        scene = generate_scene(scene_seed(self.split, index), width=self.width, height=self.height)
        masks = np.array([mask for _, mask in scene.instances], bool).reshape(-1, self.height, self.width)
        classes = np.array([CLASSES.index(label) for label, _ in scene.instances], np.int64)
        return Sample(scene.image, masks, classes, np.zeros(len(classes), bool), index)


AnySet = SceneSet | CocoSet | BitmapSet


def open_set(name: str, *, width: int = 384, height: int = 288, missing: Policy = "fatal") -> AnySet:
    """Open the set of a name (see the module's table).

    Args:
        name: as in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        width, height: of generated scenes, in pixels.
        missing: what to do with images whose file, or whose ground truth's file, is not there.

    Raises:
        ValueError: the name has another form; the message shows those that are known.
        FileNotFoundError: the annotations, or with ``missing="fatal"`` a file of the set, are not there.
    """
    kind, _, place = name.partition(":")
    first_part, colon, second_part = (
        place.rpartition(":") if kind in ("cityscapes", "bdd100k", "via") else split_after_file(place)
    )
    if kind == "scenes" and first_part in SPLITS and (not second_part or second_part.isdigit()):
        return SceneSet(first_part, int(second_part or ENDLESS), width=width, height=height)
    if kind == "via" and place:
        if Path(place).is_dir() or not first_part:
            first_part, second_part = place, ""
        return ViaSet(
            annotation_file(Path(first_part)), Path(first_part), missing=missing, label=second_part or "object"
        )
    if colon and first_part and kind in ("coco", "lvis"):
        return (CocoSet if kind == "coco" else LvisSet)(Path(first_part), Path(second_part), missing=missing)
    if colon and first_part and kind in ("cityscapes", "bdd100k"):
        return (CityscapesSet if kind == "cityscapes" else Bdd100kSet)(Path(first_part), second_part, missing=missing)
    raise ValueError(
        f"unknown data set {name!r}; write scenes:{'|'.join(SPLITS)}[:COUNT], coco:ANNOTATIONS.json:IMAGES/, "
        "lvis:ANNOTATIONS.json:IMAGES/, cityscapes:ROOT:SPLIT, bdd100k:ROOT:SPLIT or via:FOLDER[:LABEL]"
    )


def open_configured_set(name: str, cfg: CfgNode) -> AnySet:
    """Open the set of a name with the scene size and policy of a configuration's ``TRAINING`` keys."""
    keys = cfg.TRAINING
    return open_set(name, width=keys.SCENE_WIDTH, height=keys.SCENE_HEIGHT, missing=keys.MISSING_IMAGES)


def split_after_file(text: str) -> tuple[str, str, str]:
    """Split at the first colon that follows the name of an existing file, else at the first colon."""
    places = [place for place, letter in enumerate(text) if letter == ":"]
    file_ends = [place for place in places if Path(text[:place]).is_file()]
    if not file_ends:
        return text.partition(":")
    return text[: file_ends[0]], ":", text[file_ends[0] + 1 :]
