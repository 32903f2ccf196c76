"""Random valid COCO files damaged in random ways: what comes out is what went in, or a problem names what is not.

Every damage of a record or of a picture that users reported is among them; a damage may hit any record, and several
come together.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from training.datasets import CocoSet, Problem, open_set, usable_samples

Key = tuple[str, str, tuple[int, ...], bytes]  # picture, class, mask
NAMES = ("gear", "key", "rod")


@dataclass(frozen=True)
class DrawnObject:
    """An object that went in: where its records stand in the lists of the file, its class and mask."""

    annotation: int
    image: int
    category: int
    label: str
    mask_hw: np.ndarray = field(repr=False)

    def key(self, picture: str) -> Key:
        return picture, self.label, self.mask_hw.shape, self.mask_hw.tobytes()


@dataclass
class DamagedSet:
    """A set while it is damaged: its records, and the picture of each image."""

    records: dict[str, Any]
    folder: Path
    pictures: list[Path]
    objects: list[DrawnObject]
    prefix: bytes = b""


def _segmentation(mask_hw: np.ndarray, box: tuple[int, int, int, int], kind: str) -> Any:
    left, top, right, bottom = box
    if kind == "polygon":
        return [[left, top, right, top, right, bottom, left, bottom]]
    rle: Any = coco_mask.encode(np.asfortranarray(mask_hw, np.uint8))
    if kind == "packed":
        return {"size": list(mask_hw.shape), "counts": rle["counts"].decode()}
    values = np.concatenate([[0], mask_hw.T.ravel(), [0]])
    ends = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]), [mask_hw.size]])
    return {"size": list(mask_hw.shape), "counts": np.diff(ends).tolist()}


@st.composite
def valid_sets(draw: st.DrawFn) -> tuple[dict[str, Any], list[DrawnObject]]:
    """Records of a valid file, and its objects."""
    sizes = draw(st.lists(st.tuples(st.integers(12, 24), st.integers(12, 24)), min_size=1, max_size=3))
    ids = draw(st.lists(st.integers(0, 50), min_size=3, max_size=3, unique=True))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    images = [
        {"id": ids[n], "file_name": f"p{n}.png", "height": height, "width": width}
        for n, (height, width) in enumerate(sizes)
    ]
    categories = [{"id": 3 * n + draw(st.integers(0, 2)), "name": name} for n, name in enumerate(names)]
    annotations, objects = [], []
    for n in range(draw(st.integers(1, 4))):
        image, category = draw(st.integers(0, len(images) - 1)), draw(st.integers(0, len(names) - 1))
        height, width = sizes[image]
        left, top = draw(st.integers(0, width - 6)), draw(st.integers(0, height - 6))
        right, bottom = draw(st.integers(left + 3, width)), draw(st.integers(top + 3, height))
        mask_hw = np.zeros((height, width), bool)
        mask_hw[top:bottom, left:right] = True
        kind = draw(st.sampled_from(["polygon", "polygon", "packed", "counts"]))
        annotations.append(
            {
                "id": 100 + n,
                "image_id": images[image]["id"],
                "category_id": categories[category]["id"],
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": _segmentation(mask_hw, (left, top, right, bottom), kind),
                "area": int(mask_hw.sum()),
                "iscrowd": 0,
            }
        )
        objects.append(DrawnObject(n, image, category, names[category], mask_hw))
    return {"images": images, "annotations": annotations, "categories": categories}, objects


Damage = Callable[[DamagedSet, int], None]


def _set(table: str, name: str, value: Any) -> Damage:
    def damage(data_set: DamagedSet, n: int) -> None:
        entries = data_set.records[table] or [{}]
        entries[n % len(entries)][name] = value

    return damage


def _drop(table: str, name: str) -> Damage:
    def damage(data_set: DamagedSet, n: int) -> None:
        entries = data_set.records[table] or [{}]
        entries[n % len(entries)].pop(name, None)

    return damage


def _same(table: str, name: str) -> Damage:
    """All records of a table say the same, as two files that were joined."""

    def damage(data_set: DamagedSet, n: int) -> None:
        entries = data_set.records[table] or [{}]
        for entry in entries:
            entry[name] = entries[n % len(entries)].get(name)

    return damage


def _texts(prefix: str) -> Damage:
    def damage(data_set: DamagedSet, n: int) -> None:
        fields = [("images", "id"), ("categories", "id"), *(("annotations", f"{t}_id") for t in ("image", "category"))]
        for table, name in fields:
            for entry in data_set.records[table] or []:
                if entry.get(name) is not None:
                    entry[name] = f"{prefix}{entry[name]}"

    return damage


def _shift(outside_px: int) -> Damage:
    """Move an object to the left, some pixels of it out of its image: the rest of it is what there is."""

    def damage(data_set: DamagedSet, n: int) -> None:
        number = n % len(data_set.objects)
        item, entry = data_set.objects[number], (data_set.records["annotations"] or [{}] * 9)[number]
        outline = entry.get("segmentation")
        if isinstance(outline, list) and len(outline) == 1 and len(outline[0]) == 8 and min(outline[0][::2]) >= 0:
            by = min(outline[0][::2]) + outside_px
            entry["segmentation"] = [[v - by * (place % 2 == 0) for place, v in enumerate(outline[0])]]
            moved_hw = np.zeros_like(item.mask_hw)
            moved_hw[:, : moved_hw.shape[1] - by] = item.mask_hw[:, by:]
            data_set.objects[number] = replace(item, mask_hw=moved_hw)

    return damage


def _rename(new: Callable[[str], str], name_in_file: Callable[[str], str] = str) -> Damage:
    """Give a picture another name on disk, and say that name in another way in the file."""

    def damage(data_set: DamagedSet, n: int) -> None:
        path = data_set.pictures[n % len(data_set.pictures)]
        if path.is_file() and not path.name.startswith("x"):
            target = path.with_name("x" + new(path.name))
            path.rename(target)
            data_set.pictures[n % len(data_set.pictures)] = target
            data_set.records["images"][n % len(data_set.pictures)]["file_name"] = name_in_file(target.name)

    return damage


def _repaint(change: Callable[[Image.Image], Image.Image], exif: int = 1) -> Damage:
    def damage(data_set: DamagedSet, n: int) -> None:
        path = data_set.pictures[n % len(data_set.pictures)]
        orientation = Image.Exif()
        orientation[0x0112] = exif
        try:
            with Image.open(path) as picture:
                new_picture = change(picture.copy())
        except OSError:
            return  # another damage was here
        new_picture.save(path, "PNG", exif=orientation)

    return damage


def _bytes(content: Callable[[bytes], bytes]) -> Damage:
    def damage(data_set: DamagedSet, n: int) -> None:
        path = data_set.pictures[n % len(data_set.pictures)]
        path.write_bytes(content(path.read_bytes() if path.is_file() else b""))

    return damage


def _byte_order_mark(data_set: DamagedSet, n: int) -> None:
    data_set.prefix = b"\xef\xbb\xbf"


def _no_annotations(data_set: DamagedSet, n: int) -> None:
    data_set.records["annotations"] = None


DAMAGES: dict[str, Damage] = {
    "picture of half the size": _repaint(lambda p: p.resize((p.width // 2, p.height // 2))),
    "picture turned by EXIF": _repaint(lambda p: p, exif=6),
    "picture mirrored by EXIF": _repaint(lambda p: p, exif=5),
    "picture of 16 bits": _repaint(lambda p: Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) << 8)),
    "picture transparent": _repaint(lambda p: p.convert("RGBA")),
    "picture cut off": _bytes(lambda content: content[: len(content) // 2]),
    "picture empty": _bytes(lambda content: b""),
    "picture a web page": _bytes(lambda content: b"<!DOCTYPE html><html>log in</html>"),
    "picture missing": lambda data_set, n: data_set.pictures[n % len(data_set.pictures)].unlink(missing_ok=True),
    "name with backslashes": _rename(str, lambda name: f"C:\\photos\\{name}"),
    "name with percent signs": _rename(lambda name: f"a b#{name}", quote),
    "name with #": _rename(lambda name: f"a#1:{name}"),
    "byte order mark": _byte_order_mark,
    "annotations null": _no_annotations,
    "ids as digits in texts": _texts(""),
    "ids as texts": _texts("a-"),
    "one file for all images": _same("images", "file_name"),
} | {
    f"{table}: the same {name}": _same(table, name)
    for table, name in (("annotations", "id"), ("images", "id"), ("categories", "id"), ("categories", "name"))
} | {
    f"{table} without {name}": _drop(table, name)
    for table, names in {
        "images": ("id", "file_name", "height", "width"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd"),
    }.items()
    for name in names
} | {
    f"{table}: {name} is {value!r:.30}": _set(table, name, value)
    for table, name, values in (
        ("images", "height", (0, -3, "14", 14.0, None, 10**12)),
        ("images", "width", (7, [])),
        ("images", "id", (None, 1.5, {})),
        ("images", "file_name", (None, "", 5, "x" * 5000)),
        ("categories", "name", (None, 4, " ")),
        ("annotations", "image_id", (999, None, "zzz")),
        ("annotations", "category_id", (999, None, [])),
        ("annotations", "bbox", (None, [], [0, 0, 0, 0], [900, 900, 5, 5], [-50, 2, 9, 9], [1, 2, -3, 4], "zzz")),
        ("annotations", "iscrowd", ("0", None, "no", 0.0, [])),
        (
            "annotations",
            "segmentation",
            (
                None, [], [[]], "zzz", {}, [[1, 2, 3, 4]], [[1, 1, 5, 1, 9, 1]], [[0, 0, 1e9, 0, 1e9, 1e9]],
                [[float("nan")] * 6], [[900, 900, 950, 900, 950, 950]], {"size": [12, 12], "counts": "P1"},
                {"size": [13, 14], "counts": [100, 81]}, {"counts": [5]}, [{"x": 1}], [["1", "2", "5"]],
            ),
        ),
    )
    for value in values
} | {f"polygon {outside_px} px outside": _shift(outside_px) for outside_px in (1, 2)}  # fmt: skip
#: Problems that lose nothing and yet change what comes out, in the way that they say.
CHANGED = {
    "turned image",
    "repeated class name",
    "category without name",
    "repeated file",
    "no annotations",
    "no size",
    "broken size",
}


def written_set(folder: Path, records: dict[str, Any], objects: list[DrawnObject]) -> DamagedSet:
    pictures = []
    for number, image in enumerate(records["images"]):
        pixels = np.random.default_rng(number).integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        pictures.append(folder / image["file_name"])
        Image.fromarray(pixels).save(pictures[-1])
    return DamagedSet(json.loads(json.dumps(records)), folder, pictures, objects)


def read(data_set: DamagedSet) -> tuple[CocoSet, Counter[Key], dict[str, np.ndarray]] | str:
    """The set, its objects and its ignored places by picture; or why it was refused."""
    file = data_set.folder / "a.json"
    file.write_bytes(data_set.prefix + json.dumps(data_set.records).encode())
    try:
        samples = open_set(f"coco:{file}:{data_set.folder}", missing="skip")
    except ValueError as error:
        if str(file) not in str(error):
            raise
        return str(error)
    assert isinstance(samples, CocoSet)
    objects, ignored_hw = Counter[Key](), dict[str, np.ndarray]()
    for _, sample in usable_samples(samples):
        picture = samples.image_path(sample.image_id).name
        ignored_hw[picture] = sample.masks[sample.crowd].any(0)
        for mask_hw, label in zip(sample.masks[~sample.crowd], sample.classes[~sample.crowd], strict=True):
            objects[picture, samples.class_names[label], mask_hw.shape, mask_hw.tobytes()] += 1
    return samples, objects, ignored_hw


def speaks_of(problem: Problem, item: DrawnObject, data_set: DamagedSet) -> bool:
    """Whether a problem names an object, its image or its class, so that somebody can find it in the file."""
    if problem.record in ("annotations", "images"):
        return True
    words = [data_set.pictures[item.image].name]
    for table, number in (("annotation", item.annotation), ("image", item.image)):
        entry = (data_set.records[f"{table}s"] or [{}] * 9)[number]
        words += [f"{table}s[{number}]", f"{table} {entry.get('id')}"]
        words += [str(entry["file_name"])[:100]] if entry.get("file_name") else []
    category_id = data_set.records["categories"][item.category].get("id")
    words += [f"categories[{item.category}]", f"category {category_id}", f"id {category_id}", f"{category_id} and"]
    return any(re.search(rf"{re.escape(word)}(?!\d)", str(problem)) for word in words)


def check(data_set: DamagedSet) -> None:
    """What went in and did not come out is named, and its place is no background unless that is said."""
    outcome = read(data_set)
    if isinstance(outcome, str):
        return
    samples, objects, ignored_hw = outcome
    before = Counter(twin.key(data_set.pictures[twin.image].name) for twin in data_set.objects)
    missing_keys = before - objects
    made_up = objects - before
    story = json.dumps([data_set.records, [str(problem) for problem in samples.problems.entries]], indent=1)
    assert sum(made_up.values()) <= sum(missing_keys.values()), story
    for key, count in missing_keys.items():
        twins = [twin for twin in data_set.objects if twin.key(data_set.pictures[twin.image].name) == key]
        reported = [
            twin for twin in twins if is_reported(twin, data_set, samples, ignored_hw, is_changed=bool(made_up))
        ]
        assert len(reported) >= count, f"{twins} are lost in silence, or their places become background: {story}"


def is_reported(
    item: DrawnObject, data_set: DamagedSet, samples: CocoSet, ignored_hw: dict[str, np.ndarray], *, is_changed: bool
) -> bool:
    """Whether a problem names an object that did not come out, and its place is ignored or said to be left out."""
    object_problems = [problem for problem in samples.problems.entries if speaks_of(problem, item, data_set)]
    object_problems = [problem for problem in object_problems if not problem.repaired or problem.kind in CHANGED]
    place = ignored_hw.get(data_set.pictures[item.image].name)
    is_ignored = place is None or place.shape != item.mask_hw.shape or bool(place[item.mask_hw].any())
    return any(is_ignored or "left out" in str(p) or p.kind in CHANGED or is_changed for p in object_problems)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(valid_sets(), st.lists(st.tuples(st.sampled_from(sorted(DAMAGES)), st.integers(0, 3)), max_size=3))
def test_random_damages_of_random_files_are_no_silent_loss(
    valid: tuple[dict[str, Any], list[DrawnObject]], damages: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data_set = written_set(Path(folder), *valid)
        for name, number in damages:
            DAMAGES[name](data_set, number)
        check(data_set)


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_alone_is_no_silent_loss(name: str, tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        data_set = written_set(folder, *_example())
        DAMAGES[name](data_set, number)
        check(data_set)


@settings(max_examples=40, deadline=None)
@given(valid_sets())
def test_a_valid_file_comes_out_whole(valid: tuple[dict[str, Any], list[DrawnObject]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data_set = written_set(Path(folder), *valid)
        outcome = read(data_set)
        assert not isinstance(outcome, str)
        samples, objects, _ = outcome
        assert objects == Counter(item.key(data_set.pictures[item.image].name) for item in data_set.objects)
        assert not samples.problems.entries


def _example() -> tuple[dict[str, Any], list[DrawnObject]]:
    """Two images of one size, two classes, four objects."""
    images = [{"id": 7 + n, "file_name": f"p{n}.png", "height": 13, "width": 14} for n in range(2)]
    categories = [{"id": 4 + n, "name": NAMES[n]} for n in range(2)]
    annotations, objects = [], []
    for n in range(4):
        box, mask_hw = (2 * n, n, 2 * n + 5, n + 6), np.zeros((13, 14), bool)
        mask_hw[box[1] : box[3], box[0] : box[2]] = True
        annotations.append(
            {
                "id": 100 + n,
                "image_id": 7 + n % 2,
                "category_id": 4 + n // 2,
                "bbox": [box[0], box[1], 5, 6],
                "segmentation": _segmentation(mask_hw, box, "packed" if n == 3 else "polygon"),
                "area": 30,
                "iscrowd": 0,
            }
        )
        objects.append(DrawnObject(n, n % 2, n // 2, NAMES[n // 2], mask_hw))
    return {"images": images, "annotations": annotations, "categories": categories}, objects
