"""Whether a data set lies as its publishers packed it: what is missing, where to get it, counts, conversion.

Nothing is downloaded: most of these sets want an account or a licence agreed to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.files import write_text
from training.datasets.coco_categories import cocofied


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a layout needs.

    Attributes:
        pattern: files below the root.
        count: how many there are in the official set.
        source: where it comes from and what to do with it.
        records: for an annotation file: list in it -> how many the official one has.
    """

    pattern: str
    count: int
    source: str
    records: tuple[tuple[str, int], ...] = ()


_COCO_SITE = "http://images.cocodataset.org"
_ANNOTATIONS = f"{_COCO_SITE}/annotations/annotations_trainval2017.zip (241 MB), unpacked into ROOT"
_CITY_SITE = "https://www.cityscapes-dataset.com/downloads (account needed)"
_BDD_SITE = "https://bdd-data.berkeley.edu (account needed)"
LAYOUTS: dict[str, tuple[Part, ...]] = {
    "coco": (
        Part("train2017/*.jpg", 118_287, f"{_COCO_SITE}/zips/train2017.zip (18 GB), unpacked into ROOT"),
        Part("val2017/*.jpg", 5_000, f"{_COCO_SITE}/zips/val2017.zip (778 MB), unpacked into ROOT"),
        Part(
            "annotations/instances_train2017.json",
            1,
            _ANNOTATIONS,
            (("images", 118_287), ("annotations", 860_001), ("categories", 80)),
        ),
        Part(
            "annotations/instances_val2017.json",
            1,
            _ANNOTATIONS,
            (("images", 5_000), ("annotations", 36_781), ("categories", 80)),
        ),
    ),
    "lvis-cocofied": (
        Part("val2017/*.jpg", 5_000, f"{_COCO_SITE}/zips/val2017.zip (778 MB), unpacked into ROOT"),
        Part(
            "lvis_v0.5_val.json",
            1,
            "https://dl.fbaipublicfiles.com/LVIS/lvis_v0.5_val.json.zip, unpacked into ROOT (v0.5, not v1)",
            (("images", 5_000), ("categories", 1_230)),
        ),
    ),
    "cityscapes": tuple(
        Part(f"{folder}/{split}/*/*_{ending}.png", count, f"{package} from {_CITY_SITE}, unpacked into ROOT")
        for folder, ending, package in (
            ("leftImg8bit", "leftImg8bit", "leftImg8bit_trainvaltest.zip (11 GB)"),
            ("gtFine", "gtFine_instanceIds", "gtFine_trainvaltest.zip (241 MB)"),
        )
        for split, count in (("train", 2_975), ("val", 500))
    ),
    "bdd100k": tuple(
        Part(f"{folder}/{split}/*.{ending}", count, f"{package} from {_BDD_SITE}, unpacked to ROOT/{folder}")
        for folder, ending, package in (
            ("images/10k", "jpg", "10K Images"),
            ("labels/ins_seg/bitmasks", "png", "Instance Segmentation"),
        )
        for split, count in (("train", 7_000), ("val", 1_000))
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """How one part stands: `fine`, or `problem` says why not."""

    part: Part
    files: int
    problem: str

    @property
    def fine(self) -> bool:
        """Nothing to do."""
        return not self.problem

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pattern": self.part.pattern,
            "files": self.files,
            "expected": self.part.count,
            "problem": self.problem,
            "source": "" if self.fine else self.part.source,
        }


def inspect(layout: str, root: Path, *, any_size: bool = False) -> list[Finding]:
    """How every part of a layout stands below `root`; `any_size` accepts other counts than the official ones."""
    return [_inspected(part, root, any_size) for part in LAYOUTS[layout]]


def _inspected(part: Part, root: Path, any_size: bool) -> Finding:
    files = sorted(root.glob(part.pattern))
    problem = ""
    if not files:
        problem = "not there"
    elif not any_size and len(files) != part.count:
        problem = f"{len(files)} files; the official set has {part.count}"
    elif part.records:
        problem = _record_problem(files[0], part, any_size)
    return Finding(part, len(files), problem)


def _record_problem(file: Path, part: Part, any_size: bool) -> str:
    try:
        dataset = json.loads(file.read_bytes())
    except ValueError as error:
        return f"is no JSON ({error}); the download is damaged"
    for name, count in part.records:
        listed = dataset.get(name) if isinstance(dataset, dict) else None
        if not isinstance(listed, list) or not listed:
            return f"holds no {name}"
        if not any_size and len(listed) != count:
            return f"holds {len(listed)} {name}; the official file has {count}"
    return ""


def convert(layout: str, root: Path) -> list[Path]:
    """Write what has to be converted, and say what was written: LVIS cut to COCO's categories."""
    if layout != "lvis-cocofied":
        return []
    source, target = root / "lvis_v0.5_val.json", root / "lvis_v0.5_val_cocofied.json"
    write_text(target, json.dumps(cocofied(json.loads(source.read_bytes()))))
    return [target]


def set_names(layout: str, root: Path) -> list[str]:
    """The names under which `open_set` opens what is there."""
    if layout == "coco":
        return [f"coco:{root}/annotations/instances_{s}2017.json:{root}/{s}2017" for s in ("train", "val")]
    if layout == "lvis-cocofied":
        return [f"lvis:{root}/lvis_v0.5_val_cocofied.json:{root}/val2017"]
    return [f"{layout}:{root}:{split}" for split in ("train", "val")]
