"""Snapshots: the same data is the same snapshot, images never change sides, masks come back as they were."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.snapshots import write_snapshot
from training.snapshots.format import (
    SnapshotError,
    SnapshotObject,
    SnapshotWriter,
    decode_rle,
    encode_rle,
    image_record,
    open_snapshot,
    pixels_sha256,
)
from training.snapshots.holdout import LEAST_HOLDOUT, LEAST_IMAGES, holdout_hashes, is_holdout, what_is_missing

CLASSES = ("cat", "dog")
Content = list[tuple[np.ndarray, list[SnapshotObject]]]


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(left: int, top: int, right: int, bottom: int, height: int = 24, width: int = 32) -> np.ndarray:
    mask_hw = np.zeros((height, width), bool)
    mask_hw[top:bottom, left:right] = True
    return mask_hw


def content(count: int = 12) -> Content:
    """Images with none to three objects."""
    band = mask(1, 1, 5, 9)
    objects = [
        SnapshotObject("cat", mask(2, 3, 9, 12), "moved", 2.0, band, ("r1",)),
        SnapshotObject("dog", mask(5, 5, 30, 20), "kept", 0.5, None, ("r2", "r3")),
        SnapshotObject("dog", mask(0, 0, 32, 24), "added", 1.0, disputed=True),
    ]
    return [(picture(seed), objects[: seed % 4]) for seed in range(count)]


def test_masks_labels_and_weights_come_back(tmp_path: Path) -> None:
    given_images = content()
    snapshot = open_snapshot(write_snapshot(given_images, tmp_path, classes=CLASSES))
    by_hash = {pixels_sha256(image): objects for image, objects in given_images}
    hashes = set()
    for part in ("train", "holdout"):
        records, samples = snapshot.coco(part), snapshot.open_set(part)
        assert samples.class_names == CLASSES
        for image, sample in zip(records["images"], (samples[n] for n in range(len(samples))), strict=True):
            hashes.add(image["sha256"])
            assert pixels_sha256(sample.image) == image["sha256"]
            assert (image["sha256"] in holdout_hashes(by_hash)) == (part == "holdout")
            entries = [a for a in records["annotations"] if a["image_id"] == image["id"]]
            expected = by_hash[image["sha256"]]
            assert len(entries) == len(expected) == len(sample.masks)
            for entry, drawn_hw, label in zip(entries, sample.masks, sample.classes, strict=True):
                origin = next(o for o in expected if np.array_equal(o.mask_hw, drawn_hw))
                assert (CLASSES[label], entry["weight"]) == (origin.label, origin.weight)
                assert (entry["correction"], bool(entry["iscrowd"])) == (origin.correction, origin.disputed)
                assert entry["region_ids"] == list(origin.region_ids)
                band_hw = decode_rle(entry["moved_band"]) if entry["moved_band"] else None
                assert (band_hw is None) == (origin.moved_band_hw is None)
                assert band_hw is None or np.array_equal(band_hw, origin.moved_band_hw)
    assert hashes == set(by_hash)
    counts = snapshot.manifest["counts"]
    assert (counts["images"], counts["empty_images"], counts["disputed"]) == (12, 3, 3)
    assert counts["objects_by_class"] == {"cat": 9, "dog": 6}


@settings(max_examples=10)
@given(order=st.permutations(range(6)), is_reversed=st.lists(st.booleans(), min_size=6, max_size=6))
def test_order_changes_nothing(
    order: list[int], is_reversed: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    images = content(6)
    shuffled_images = [(images[n][0], images[n][1][::-1] if is_reversed[n] else images[n][1]) for n in order]
    first = write_snapshot(images, tmp_path_factory.mktemp("one"), classes=CLASSES)
    second = write_snapshot(shuffled_images, tmp_path_factory.mktemp("other"), classes=CLASSES)
    assert first.name == second.name
    assert [(first / f).read_bytes() for f in ("train.json", "holdout.json")] == [
        (second / f).read_bytes() for f in ("train.json", "holdout.json")
    ]


def changed(change: str) -> tuple[Content, tuple[str, ...], float]:
    """The content with one thing changed."""
    images, classes, share = content(6), CLASSES, 0.2
    image, objects = images[3]
    first = objects[0]
    fields = {"label": first.label, "mask_hw": first.mask_hw, "moved_band_hw": first.moved_band_hw}
    fields |= {"correction": first.correction, "weight": first.weight, "region_ids": first.region_ids}
    rows = {
        "pixel": {},
        "label": {"label": "dog"},
        "mask": {"mask_hw": mask(2, 3, 9, 13)},
        "weight": {"weight": 1.5},
        "band": {"moved_band_hw": mask(1, 1, 5, 8)},
        "correction": {"correction": "relabelled"},
        "region id": {"region_ids": ("other",)},
    }
    if change == "pixel":
        image = image.copy()
        image[0, 0, 0] ^= 1
    elif change == "classes":
        classes = ("cat", "dog", "bird")
    elif change == "share":
        share = 0.3
    images[3] = (image, [SnapshotObject(**fields | rows.get(change, {})), *objects[1:]])
    return images, classes, share


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("nothing", True),
        ("region id", True),  # who drew it in which session is not content
        *((w, False) for w in ("pixel", "label", "mask", "weight", "band", "correction", "classes", "share")),
    ],
)
def test_the_digest_is_of_the_content(change: str, same: bool, tmp_path: Path) -> None:
    images, classes, share = changed(change)
    first = write_snapshot(content(6), tmp_path / "one", classes=CLASSES)
    second = write_snapshot(images, tmp_path / "other", classes=classes, holdout_share=share)
    assert (first.name == second.name) == same


def test_ids_and_times_and_file_formats_are_not_content(tmp_path: Path) -> None:
    image, objects = content(4)[3]
    names = []
    for number, suffix in enumerate((".png", ".webp")):
        data = io.BytesIO()
        Image.fromarray(image).save(data, suffix[1:], lossless=True)
        with SnapshotWriter(tmp_path / str(number), CLASSES, project=str(number)) as writer:
            record = image_record(image, objects, CLASSES, task_id=number, annotation_ids=[number])
            writer.add(record, image, (data.getvalue(), suffix))
            newest_at = datetime(2026, 1, 1 + number, tzinfo=UTC)
            path = writer.finish(newest_annotation_at=newest_at, annotation_ids=[7, number, 7])
        names.append(path.name)
        manifest = open_snapshot(path).manifest
        assert manifest["newest_annotation_at"] == newest_at.isoformat()
        assert manifest["annotation_ids"] == [number, 7]
    assert names[0] == names[1]


def test_the_same_data_twice_is_one_folder(tmp_path: Path) -> None:
    first = write_snapshot(content(), tmp_path, classes=CLASSES)
    manifest = (first / "manifest.json").read_bytes()
    assert write_snapshot(content(), tmp_path, classes=CLASSES) == first
    assert (first / "manifest.json").read_bytes() == manifest
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_an_image_uploaded_again_never_comes_from_training_into_the_holdout(tmp_path: Path) -> None:
    """Whatever else is annotated, and in whatever lossless file it comes."""
    sides: dict[str, list[str]] = {}
    for round_number, count in enumerate((5, 20, 40)):
        snapshot = open_snapshot(write_snapshot(content(count), tmp_path / str(round_number), classes=CLASSES))
        for part in ("train", "holdout"):
            for image in snapshot.coco(part)["images"]:
                sides.setdefault(image["sha256"], []).append(part)
    assert len(sides) == 40
    # Only an image that a small set was topped up with goes the other way.
    assert all(parts == sorted(parts) for parts in sides.values())
    assert sum(len(set(parts)) > 1 for parts in sides.values()) <= LEAST_HOLDOUT
    assert 0 < sum("holdout" in parts for parts in sides.values()) < 20


@given(st.integers(0, 2**256 - 1).map(lambda n: f"{n:064x}"), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_only_adds_to_the_holdout(sha256: str, share: float, second_share: float) -> None:
    low, high = sorted((share, second_share))
    assert is_holdout(sha256, low) <= is_holdout(sha256, high)
    assert not is_holdout(sha256, 0.0)


HASHES = st.lists(st.integers(0, 2**256 - 1).map(lambda n: f"{n:064x}"), max_size=30, unique=True)


@given(HASHES, HASHES)
def test_no_image_comes_from_training_into_the_holdout(before: list[str], new_hashes: list[str]) -> None:
    """As images are added to a set that was trained on."""
    if len(before) < LEAST_IMAGES:
        return
    train_hashes = set(before) - holdout_hashes(before)
    assert not train_hashes & holdout_hashes([*before, *new_hashes])


@given(HASHES)
def test_a_set_that_can_be_judged_has_a_holdout(hashes: list[str]) -> None:
    holdout = holdout_hashes(hashes)
    assert len(holdout) >= (LEAST_HOLDOUT if len(hashes) >= LEAST_IMAGES else 0)
    assert {sha256 for sha256 in hashes if is_holdout(sha256)} <= holdout
    assert holdout_hashes(hashes, 0.0) == frozenset()


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({}, ""),
        ({"images": 4, "train_images": 2, "holdout_images": 2}, ""),
        ({"images": 3, "train_images": 3, "holdout_images": 0}, "3 annotated image(s) leave none to judge by; "),
        ({"images": 1, "train_images": 0, "holdout_images": 1}, "none to train on; annotate 3 more"),
    ],
)
def test_what_cannot_be_judged_is_said(counts: dict[str, int], says: str) -> None:
    assert says in what_is_missing(counts)
    assert bool(says) == bool(what_is_missing(counts))


def test_about_the_share_is_held_out() -> None:
    holdout_count = sum(is_holdout(pixels_sha256(picture(seed, 4, 4))) for seed in range(1000))
    assert 150 < holdout_count < 250


def test_blank_images_of_other_shapes_are_other_images() -> None:
    assert pixels_sha256(np.zeros((4, 8, 3), np.uint8)) != pixels_sha256(np.zeros((8, 4, 3), np.uint8))


@given(
    st.integers(1, 20).flatmap(
        lambda h: st.integers(1, 20).flatmap(
            lambda w: st.lists(st.booleans(), min_size=h * w, max_size=h * w).map(
                lambda bits: np.array(bits, bool).reshape(h, w)
            )
        )
    )
)
def test_any_mask_survives_the_run_length_code(mask_hw: np.ndarray) -> None:
    assert np.array_equal(decode_rle(json.loads(json.dumps(encode_rle(mask_hw)))), mask_hw)


def damage(path: Path, part: str) -> None:
    if part == "an annotation":
        text = (path / "train.json").read_text()
        (path / "train.json").write_text(text.replace('"weight": 2.0', '"weight": 9.0', 1))
    elif part == "an image":
        next((path / "images").iterdir()).unlink()
    elif part == "a file":
        (path / "holdout.json").unlink()
    elif part == "json":
        (path / "manifest.json").write_text("{")
    else:
        (path / "manifest.json").write_text("[]")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("an annotation", "was changed"),
        ("an image", "missing"),
        ("a file", "no snapshot: holdout.json is missing"),
        ("json", "damaged"),
        ("a list", "holds a list"),
    ],
)
def test_a_damaged_snapshot_is_not_opened(part: str, words: str, tmp_path: Path) -> None:
    path = write_snapshot(content(), tmp_path, classes=CLASSES)
    damage(path, part)
    with pytest.raises(SnapshotError, match=words):
        open_snapshot(path)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (SnapshotObject("bird", mask(0, 0, 3, 3)), "a 'bird'"),
        (SnapshotObject("cat", np.zeros((24, 32), bool)), "0 pixels"),
        (SnapshotObject("cat", np.ones((3, 3), bool)), r"mask of \(3, 3\)"),
    ],
)
def test_objects_that_cannot_be_are_refused(bad: SnapshotObject, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        write_snapshot([(picture(0), [bad])], tmp_path, classes=CLASSES)
    assert not list(tmp_path.iterdir())  # nothing half-written is left


def test_no_image_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="at least one annotated task"):
        write_snapshot([], tmp_path, classes=CLASSES)
    with pytest.raises(ValueError, match="distinct classes"):
        write_snapshot(content(), tmp_path, classes=("cat", "cat"))
