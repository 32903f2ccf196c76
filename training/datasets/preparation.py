"""Check that a data set has its publishers' layout: what is missing, where to get it, counts; convert LVIS.

Nothing is downloaded: most of these sets need an account or an accepted licence. LVIS is cut to COCO's 80 categories,
the ground truth of PointRend's AP*.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.files import write_text


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of file that a layout needs.

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
    """Result of checking one part; `problem` is empty where it is fine."""

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
    """Check every part of a layout below `root`; `any_size` accepts other counts than the official ones."""
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
        records = dataset.get(name) if isinstance(dataset, dict) else None
        if not isinstance(records, list) or not records:
            return f"holds no {name}"
        if not any_size and len(records) != count:
            return f"holds {len(records)} {name}; the official file has {count}"
    return ""


def convert(layout: str, root: Path) -> list[Path]:
    """Write the files that a layout needs converted (LVIS cut to COCO's categories); the paths written."""
    if layout != "lvis-cocofied":
        return []
    source, target = root / "lvis_v0.5_val.json", root / "lvis_v0.5_val_cocofied.json"
    write_text(target, json.dumps(cocofied(json.loads(source.read_bytes()))))
    return [target]


def set_names(layout: str, root: Path) -> list[str]:
    """Names of the layout's sets for `open_set`."""
    if layout == "coco":
        return [f"coco:{root}/annotations/instances_{s}2017.json:{root}/{s}2017" for s in ("train", "val")]
    if layout == "lvis-cocofied":
        return [f"lvis:{root}/lvis_v0.5_val_cocofied.json:{root}/val2017"]
    return [f"{layout}:{root}:{split}" for split in ("train", "val")]


_LISTED = """
1 person person.n.01; 2 bicycle bicycle.n.01; 3 car car.n.01; 4 motorcycle motorcycle.n.01; 5 airplane airplane.n.01;
6 bus bus.n.01; 7 train train.n.01; 8 truck truck.n.01; 9 boat boat.n.01; 10 traffic_light traffic_light.n.01;
11 fire_hydrant fireplug.n.01; 13 stop_sign stop_sign.n.01; 14 parking_meter parking_meter.n.01; 15 bench bench.n.01;
16 bird bird.n.01; 17 cat cat.n.01; 18 dog dog.n.01; 19 horse horse.n.01; 20 sheep sheep.n.01; 21 cow beef.n.01;
22 elephant elephant.n.01; 23 bear bear.n.01; 24 zebra zebra.n.01; 25 giraffe giraffe.n.01; 27 backpack backpack.n.01;
28 umbrella umbrella.n.01; 31 handbag bag.n.04; 32 tie necktie.n.01; 33 suitcase bag.n.06; 34 frisbee frisbee.n.01;
35 skis ski.n.01; 36 snowboard snowboard.n.01; 37 sports_ball ball.n.06; 38 kite kite.n.03;
39 baseball_bat baseball_bat.n.01; 40 baseball_glove baseball_glove.n.01; 41 skateboard skateboard.n.01;
42 surfboard surfboard.n.01; 43 tennis_racket tennis_racket.n.01; 44 bottle bottle.n.01; 46 wine_glass wineglass.n.01;
47 cup cup.n.01; 48 fork fork.n.01; 49 knife knife.n.01; 50 spoon spoon.n.01; 51 bowl bowl.n.03; 52 banana banana.n.02;
53 apple apple.n.01; 54 sandwich sandwich.n.01; 55 orange orange.n.01; 56 broccoli broccoli.n.01; 57 carrot carrot.n.01;
58 hot_dog frank.n.02; 59 pizza pizza.n.01; 60 donut doughnut.n.02; 61 cake cake.n.03; 62 chair chair.n.01;
63 couch sofa.n.01; 64 potted_plant pot.n.04; 65 bed bed.n.01; 67 dining_table dining_table.n.01; 70 toilet toilet.n.02;
72 tv television_receiver.n.01; 73 laptop laptop.n.01; 74 mouse mouse.n.04; 75 remote remote_control.n.01;
76 keyboard computer_keyboard.n.01; 77 cell_phone cellular_telephone.n.01; 78 microwave microwave.n.02;
79 oven oven.n.01; 80 toaster toaster.n.02; 81 sink sink.n.01; 82 refrigerator electric_refrigerator.n.01;
84 book book.n.01;
85 clock clock.n.01; 86 vase vase.n.01; 87 scissors scissors.n.01; 88 teddy_bear teddy.n.01;
89 hair_drier hand_blower.n.01; 90 toothbrush toothbrush.n.01
"""


def _row(text: str) -> tuple[int, str, str]:
    number, name, synset = text.split()
    return int(number), name.replace("_", " "), synset


COCO_CATEGORIES: tuple[tuple[int, str, str], ...] = tuple(map(_row, _LISTED.split(";")))


_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def cocofied(lvis: dict[str, Any]) -> dict[str, Any]:
    """Cut an LVIS file to COCO's categories (v0.5 for the published numbers: v1's val has images outside val2017)."""
    coco_of = {synset: number for number, _, synset in COCO_CATEGORIES}
    coco_id_of = {
        category["id"]: coco_of[category["synset"]] for category in lvis["categories"] if category["synset"] in coco_of
    }
    images = [
        image | {name: [coco_id_of[number] for number in image[name] if number in coco_id_of] for name in _LISTS}
        for image in lvis["images"]
    ]
    source_annotations = [annotation for annotation in lvis["annotations"] if annotation["category_id"] in coco_id_of]
    annotations = [
        annotation | {"category_id": coco_id_of[annotation["category_id"]], "id": index}
        for index, annotation in enumerate(source_annotations, 1)
    ]
    used_ids = {annotation["category_id"] for annotation in annotations}
    used_ids |= {number for image in images for name in _LISTS for number in image[name]}
    categories = [
        category | {"id": coco_id_of[category["id"]]}
        for category in lvis["categories"]
        if coco_id_of.get(category["id"]) in used_ids
    ]
    return lvis | {"images": images, "annotations": annotations, "categories": categories}
