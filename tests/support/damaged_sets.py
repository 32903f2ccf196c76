"""Small sets in every format, damaged in known ways, and what becomes of their objects.

Run: python -m tests.support.damaged_sets

Each set has two pictures and three rectangles. An outcome is ``same`` (every object comes out as it went in), ``named``
(something is lost or changed, and a problem says so), ``refused`` (an error says why, naming a file) or ``SILENT``.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from backend.cli.train.snapshot import read_rows
from backend.errors import ServiceError
from backend.learning.snapshot import ImageFolder, Labelling, SnapshotSettings, freeze_tasks
from tests.support.snapshots import write_snapshot
from training.datasets import open_set, usable_samples
from training.finetune.plan import SnapshotSamples
from training.snapshots.format import SnapshotObject

HEIGHT, WIDTH = 24, 40
#: Label and box (left, top, right, bottom) of each object of each picture.
OBJECTS = ((("gear", (4, 3, 16, 13)), ("key", (20, 8, 34, 20))), (("gear", (6, 6, 22, 18)),))
JSON_FORMATS = ("coco", "lvis", "via", "label-studio")
FORMATS = (*JSON_FORMATS, "cityscapes", "bdd100k", "snapshot")
CONFIG = (
    '<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image">'
    '<Label value="gear"/><Label value="key"/></PolygonLabels></View>'
)


#: Problems that lose nothing, and say that a class has another name, or that a file has changed: VIA knows no sizes.
CHANGED = ("category without name", "repeated class name", "other file")


@dataclass(frozen=True)
class Written:
    """A set on disk: the files of its pictures and of its truth."""

    kind: str
    folder: Path
    pictures: tuple[Path, ...]
    truths: tuple[Path, ...]

    @property
    def name(self) -> str:
        """What `open_set` opens."""
        if self.kind in ("cityscapes", "bdd100k"):
            return f"{self.kind}:{self.folder}:val"
        return f"via:{self.folder}" if self.kind == "via" else f"{self.kind}:{self.truths[0]}:{self.folder}"


@dataclass
class Reading:
    """What was read: objects by class and mask, what a problem names, and why it was refused."""

    objects: Counter[tuple[str, tuple[int, ...], bytes]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    refused: str = ""


def pixels(number: int) -> np.ndarray:
    """The picture of a number."""
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def corners(box: tuple[int, int, int, int]) -> list[list[float]]:
    """The four corners of a box."""
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_set(kind: str, folder: Path) -> Written:
    """Write the set in a format."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in ("cityscapes", "bdd100k"):
        return _write_bitmaps(kind, folder)
    if kind == "snapshot":
        objects = [[SnapshotObject(label, _mask(box)) for label, box in drawn] for drawn in OBJECTS]
        path = write_snapshot([(pixels(n), o) for n, o in enumerate(objects)], folder, classes=("gear", "key"))
        truths = tuple(path / name for name in ("train.json", "holdout.json", "manifest.json"))
        return Written(kind, path, tuple(sorted((path / "images").iterdir())), truths)
    pictures = tuple(folder / f"{number}.png" for number in range(len(OBJECTS)))
    for number, path in enumerate(pictures):
        Image.fromarray(pixels(number)).save(path)
    truth = folder / ("via_region_data.json" if kind == "via" else "truth.json")
    truth.write_text(json.dumps(_records(kind, pictures)))
    return Written(kind, folder, pictures, (truth,))


def _mask(box: tuple[int, int, int, int]) -> np.ndarray:
    mask_hw = np.zeros((HEIGHT, WIDTH), bool)
    mask_hw[box[1] : box[3], box[0] : box[2]] = True
    return mask_hw


def _write_bitmaps(kind: str, folder: Path) -> Written:
    pictures, truths = [], []
    for number, drawn in enumerate(OBJECTS):
        if kind == "cityscapes":
            picture = folder / f"leftImg8bit/val/city/city_{number}_leftImg8bit.png"
            truth = folder / f"gtFine/val/city/city_{number}_gtFine_instanceIds.png"
            bitmap = np.full((HEIGHT, WIDTH), 7, np.uint16)
        else:
            picture = folder / f"images/10k/val/{number}.jpg"
            truth = folder / f"labels/ins_seg/bitmasks/val/{number}.png"
            bitmap = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        for place, (label, box) in enumerate(drawn, 1):
            known = (26 if label == "gear" else 24) if kind == "cityscapes" else (3 if label == "gear" else 1)
            bitmap[_mask(box)] = known * 1000 + place if kind == "cityscapes" else (known, 0, 0, place)
        for path in (picture, truth):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(picture)
        Image.fromarray(bitmap).save(truth)
        pictures.append(picture)
        truths.append(truth)
    return Written(kind, folder, tuple(pictures), tuple(truths))


def _records(kind: str, pictures: tuple[Path, ...]) -> Any:
    if kind == "via":
        return {
            path.name: {"filename": path.name, "size": path.stat().st_size, "regions": [*map(_via_region, drawn)]}
            for path, drawn in zip(pictures, OBJECTS, strict=True)
        }
    if kind == "label-studio":
        return [
            _task(number, path.name, drawn) for number, (path, drawn) in enumerate(zip(pictures, OBJECTS, strict=True))
        ]
    images = [
        {"id": number, "file_name": path.name, "width": WIDTH, "height": HEIGHT}
        | ({"neg_category_ids": [], "not_exhaustive_category_ids": []} if kind == "lvis" else {})
        for number, path in enumerate(pictures, 1)
    ]
    everything = [(number, label, box) for number, drawn in enumerate(OBJECTS, 1) for label, box in drawn]
    annotations = [
        {
            "id": index,
            "image_id": number,
            "category_id": 1 if label == "gear" else 2,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "segmentation": [[float(value) for point in corners(box) for value in point]],
            "area": (box[2] - box[0]) * (box[3] - box[1]),
        }
        | ({} if kind == "lvis" else {"iscrowd": 0})
        for index, (number, label, box) in enumerate(everything, 1)
    ]
    categories = [{"id": 1, "name": "gear"}, {"id": 2, "name": "key"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _via_region(drawn: tuple[str, tuple[int, int, int, int]]) -> Any:
    columns = [[point[axis] for point in corners(drawn[1])] for axis in (0, 1)]
    shape = {"name": "polygon", "all_points_x": columns[0], "all_points_y": columns[1]}
    return {"shape_attributes": shape, "region_attributes": {}}


def _task(number: int, name: str, drawn: Any) -> Any:
    result = [
        {
            "id": f"region{number}{place}",
            "type": "polygonlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "value": {
                "points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(box)],
                "closed": True,
                "polygonlabels": [label],
            },
        }
        for place, (label, box) in enumerate(drawn)
    ]
    annotation = {"id": 10 + number, "was_cancelled": False, "result": result}
    return {"id": 1 + number, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [annotation]}


def read_set(written: Written) -> Reading:
    """Read a set as the product does; errors that it tells are part of the reading, all others are raised."""
    reading, folder = Reading(), written.folder
    try:
        if written.kind == "label-studio":
            _read_export(reading, written)
        elif written.kind == "snapshot":
            for part in ("train", "holdout"):
                samples = SnapshotSamples(folder, part=part)
                _collect(reading, samples)
        else:
            _collect(reading, open_set(written.name, missing="skip"))
    except (ValueError, FileNotFoundError, ServiceError) as error:
        reading.refused = str(error)
        if not any(path.name in reading.refused for path in (folder, *folder.rglob("*"))) and "No snapshot" not in str(
            error
        ):
            raise
    return reading


def _collect(reading: Reading, samples: Any) -> None:
    for _, sample in usable_samples(samples):
        for mask, label, is_crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True):
            if not is_crowd:
                reading.objects[samples.class_names[label], mask.shape, mask.tobytes()] += 1
    entries = samples.problems.entries
    reading.problems += [str(problem) for problem in entries if not problem.repaired or problem.kind in CHANGED]


def _read_export(reading: Reading, written: Written) -> None:
    with tempfile.TemporaryDirectory() as out:
        rows, labelling = read_rows(written.truths[0]), Labelling.of_config(CONFIG)
        settings = SnapshotSettings(holdout_share=0)
        path = freeze_tasks(rows, labelling, ImageFolder(written.folder).fetch, Path(out), settings=settings)
        left_out = json.loads((path / "corrections.json").read_text())["left_out"]
        reading.problems += [f"task {entry['task']}: {entry['reason']}" for entry in left_out if entry["lost"]]
        _collect(reading, SnapshotSamples(path))


def outcome(before: Reading, after: Reading) -> str:
    """What became of the objects of a set."""
    if after.refused:
        return "refused"
    if before.objects == after.objects:
        return "same"
    return "named" if after.problems else "SILENT"


def _redraw(change: Callable[[Image.Image], Image.Image], **options: Any) -> Callable[[Written], None]:
    def damage(written: Written) -> None:
        path = written.pictures[0]
        with Image.open(path) as picture:
            drawn = change(picture.convert("RGB"))
        drawn.save(path, **options)

    return damage


def _cut(which: str, share: float) -> Callable[[Written], None]:
    def damage(written: Written) -> None:
        path = (written.pictures if which == "picture" else written.truths)[0]
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


def _remove(which: str) -> Callable[[Written], None]:
    return lambda written: (written.pictures if which == "picture" else written.truths)[0].unlink()


def _edit(change: Callable[[Any, str], None]) -> Callable[[Written], None]:
    def damage(written: Written) -> None:
        content = json.loads(written.truths[0].read_text())
        change(content, written.kind)
        written.truths[0].write_text(json.dumps(content))

    return damage


def _first_region(content: Any, kind: str) -> tuple[Any, str]:
    """The record that holds the first outline, and the outline's name in it."""
    if kind == "via":
        return content["0.png"]["regions"][0]["shape_attributes"], "all_points_x"
    if kind == "label-studio":
        return content[0]["annotations"][0]["result"][0]["value"], "points"
    return content["annotations"][0], "segmentation"


def _outline(value: Any) -> Callable[[Any, str], None]:
    def change(content: Any, kind: str) -> None:
        record, name = _first_region(content, kind)
        record[name] = value

    return change


def _huge(content: Any, kind: str) -> None:
    record, name = _first_region(content, kind)
    values = {"via": [1e9, 4, 4, 1e9], "label-studio": [[0, 0], [1e9, 0], [1e9, 1e9]]}
    record[name] = values.get(kind, [[0, 0, 1e9, 0, 9, 1e9]])


def _unknown_class(content: Any, kind: str) -> None:
    if kind == "label-studio":
        _first_region(content, kind)[0]["polygonlabels"] = ["nobody"]
    else:
        content["annotations"][0]["category_id"] = 77


def _repeat_ids(content: Any, kind: str) -> None:
    if kind == "label-studio":
        for region in content[0]["annotations"][0]["result"]:
            region["id"] = "same"
    else:
        for annotation in content["annotations"]:
            annotation["id"] = 1


def _rename(as_said: Callable[[str], str]) -> Callable[[Written], None]:
    """Give the first picture a name with a blank and a #, and write it in another way into the truth."""

    def damage(written: Written) -> None:
        former, target = written.pictures[0], written.pictures[0].with_name("a b#0.png")
        former.rename(target)
        text = written.truths[0].read_text()
        written.truths[0].write_text(text.replace(former.name, json.dumps(as_said(target.name))[1:-1]))

    return damage


def _text_ids(content: Any, kind: str) -> None:
    if kind == "label-studio":
        for task in content:
            task["id"] = task["annotations"][0]["id"] = f"a-{task['id']}"
        return
    for entry in (*content["images"], *content["categories"]):
        entry["id"] = f"a-{entry['id']}"
    for annotation in content["annotations"]:
        annotation |= {name: f"a-{annotation[name]}" for name in ("image_id", "category_id")}


def _paint_unknown(written: Written) -> None:
    with Image.open(written.truths[0]) as picture:
        bitmap = np.array(picture)
    bitmap[_mask(OBJECTS[0][0][1])] = 40_001 if written.kind == "cityscapes" else (12, 0, 0, 1)
    Image.fromarray(bitmap).save(written.truths[0])


def _byte_order_mark(written: Written) -> None:
    written.truths[0].write_bytes(b"\xef\xbb\xbf" + written.truths[0].read_bytes())


def _turn(written: Written) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _redraw(lambda picture: picture, exif=exif)(written)


def _deepen(written: Written) -> None:
    with Image.open(written.pictures[0]) as picture:
        gray = np.asarray(picture.convert("L")).astype(np.uint16) << 8
    data = io.BytesIO()
    Image.fromarray(gray).save(data, "PNG")
    written.pictures[0].write_bytes(data.getvalue())


_PIXEL_FORMATS = ("cityscapes", "bdd100k")
#: Damage -> formats that can have it, and what does it to the first picture or the first truth.
DAMAGES: dict[str, tuple[tuple[str, ...], Callable[[Written], None]]] = {
    "none": (FORMATS, lambda written: None),
    "picture of half the size": (
        tuple(kind for kind in FORMATS if kind != "label-studio"),  # its coordinates are percent: they still fit
        _redraw(lambda picture: picture.resize((WIDTH // 2, HEIGHT // 2))),
    ),
    "picture turned by EXIF": (FORMATS, _turn),
    "picture cut off": (FORMATS, _cut("picture", 0.6)),
    "picture empty": (FORMATS, _cut("picture", 0)),
    "picture missing": (FORMATS, _remove("picture")),
    "picture of 16 bits": (FORMATS[:-1], _deepen),
    "truth cut off": (FORMATS, _cut("truth", 0.6)),
    "truth empty": (FORMATS, _cut("truth", 0)),
    "truth missing": (tuple(kind for kind in FORMATS if kind != "label-studio"), _remove("truth")),
    "byte order mark": (JSON_FORMATS, _byte_order_mark),
    "coordinate of 1e9": (JSON_FORMATS, _edit(_huge)),
    "outline empty": (JSON_FORMATS, _edit(_outline([]))),
    "outline null": (JSON_FORMATS, _edit(_outline(None))),
    "outline a text": (JSON_FORMATS, _edit(_outline("zzz"))),
    "unknown class": (("coco", "lvis", "label-studio"), _edit(_unknown_class)),
    "unknown instance": (_PIXEL_FORMATS, _paint_unknown),
    "repeated ids": (("coco", "lvis", "label-studio"), _edit(_repeat_ids)),
    "ids as texts": (("coco", "lvis", "label-studio"), _edit(_text_ids)),
    "backslashes in a name": (JSON_FORMATS, _rename(lambda name: f"photos\\{name}")),
    "percent signs in a name": (JSON_FORMATS, _rename(quote)),
}
#: Damages that cost nothing: the meaning is clear all the same.
HARMLESS = (
    "none",
    "picture of 16 bits",
    "byte order mark",
    "repeated ids",
    "ids as texts",
    "backslashes in a name",
    "percent signs in a name",
)
#: Formats whose truth is turned with a picture that EXIF turns; in the others it was drawn on the turned picture.
TURNED = ("coco", "lvis", *_PIXEL_FORMATS)


def result_of(kind: str, damage: str, folder: Path) -> tuple[str, Reading]:
    """Outcome and reading of a format's set under a damage."""
    written = write_set(kind, folder)
    before = read_set(written)
    DAMAGES[damage][1](written)
    after = read_set(written)
    if damage == "picture turned by EXIF" and kind in TURNED:
        for label, shape, mask in list(before.objects):
            if any(mask == _mask(box).tobytes() for _, box in OBJECTS[0]):
                turned = np.rot90(np.frombuffer(mask, bool).reshape(shape), -1)
                del before.objects[label, shape, mask]
                before.objects[label, turned.shape, turned.tobytes()] += 1
    return outcome(before, after), after


def main() -> None:
    """Print the table of damages and formats."""
    logging.disable(logging.CRITICAL)
    print(f"| {'damage':26} | " + " | ".join(f"{kind:12}" for kind in FORMATS) + " |")
    print("|---" * (1 + len(FORMATS)) + "|")
    for damage, (kinds, _) in DAMAGES.items():
        cells = []
        for kind in FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                cells.append(result_of(kind, damage, Path(folder))[0] if kind in kinds else "")
        print(f"| {damage:26} | " + " | ".join(f"{cell:12}" for cell in cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
