"""Snapshots from tasks and from exported files: images, objects, corrections, and nothing lost unsaid."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from backend.cli.main import cli
from backend.errors import ServiceError, UnsupportedConfigError
from backend.learning.snapshot import ANNOTATED, ImageFolder, Labelling, SnapshotSettings, freeze_tasks, take_snapshot
from model.images import ImageError, read_image
from training.snapshots.format import FILES, Snapshot, decode_rle, open_snapshot, pixels_sha256

CONFIG = (
    '<View><Image name="image" value="$image"/><PolygonLabels name="poly" toName="image">'
    '<Label value="car" predicted_values="vehicle"/><Label value="cat"/></PolygonLabels></View>'
)
WIDTH, HEIGHT = 50, 40


def png(seed: int, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, **{"format": "PNG", **options})
    return data.getvalue()


def region(region_id: str, box: tuple[int, int, int, int], label: str = "car", **value: Any) -> dict[str, Any]:
    """A box of pixels as a polygon."""
    left, top, right, bottom = box
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners]
    return {
        "id": region_id,
        "type": "polygonlabels",
        "from_name": "poly",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": {"points": points, "closed": True, "polygonlabels": [label], **value},
    }


def task(number: int, *results: list[dict[str, Any]], shown: list[dict[str, Any]] | None = None, **fields: Any) -> Any:
    """A task as the API lists it: one annotation for each result, by different people; prediction 100 + number."""
    annotations = [
        {
            "id": 10 * number + n,
            "completed_by": n,
            "result": result,
            "was_cancelled": False,
            "ground_truth": False,
            "updated_at": f"2026-11-22T10:{number:02d}:{n:02d}Z",
            "lead_time": 10.0,
            "parent_prediction": 100 + number if shown is not None else None,
        }
        for n, result in enumerate(results)
    ]
    predictions = [] if shown is None else [{"id": 100 + number, "model_version": "v1", "score": 0.8, "result": shown}]
    data = {"image": f"/data/upload/1/{number:08x}-photo-{number}.png"}
    return {"id": number, "data": data, "annotations": annotations, "predictions": predictions, **fields}


CAR, CAT = region("a", (5, 5, 25, 25)), region("b", (30, 5, 45, 30), "cat")
LARGER = region("a", (5, 5, 25, 35))
TASKS = [
    task(1, [CAR, CAT], shown=[CAR, CAT]),
    task(2, [LARGER], shown=[CAR, CAT]),
    task(3, [CAR], shown=None),
    task(4, [], shown=[CAR]),
    task(5, [CAR, region("open", (1, 1, 9, 9), closed=False)], shown=[]),
]


class FakeLabelStudio:
    """The two questions that a snapshot asks."""

    def __init__(self, tasks: list[Any], config: str = CONFIG) -> None:
        self.tasks, self.config, self.queries = tasks, config, []  # type: ignore[var-annotated]

    def get_project(self, project_id: int) -> dict[str, Any]:
        return {"id": project_id, "label_config": self.config}

    def iter_tasks(self, project_id: int, *, query: str | None = None) -> Iterator[dict[str, Any]]:
        self.queries.append((project_id, query))
        yield from self.tasks


def fetch(row: Mapping[str, Any], value_key: str) -> bytes:
    assert row["data"][value_key]
    return png(row["id"])


def frozen(tasks: list[Any], out: Path, fetch: Any = fetch, **settings: Any) -> Snapshot:
    client: Any = FakeLabelStudio(tasks)
    path = take_snapshot(client, 12, fetch, out, settings=SnapshotSettings(**settings))
    assert client.queries == [(12, ANNOTATED)]
    snapshot = open_snapshot(path)
    for part in FILES:
        for image in snapshot.coco(part)["images"]:
            assert pixels_sha256(read_image(snapshot.images / image["file_name"])) == image["sha256"]
    return snapshot


def objects_of(snapshot: Snapshot, task_id: int) -> list[dict[str, Any]]:
    for part in ("train", "holdout"):
        coco = snapshot.coco(part)
        names = {category["id"]: category["name"] for category in coco["categories"]}
        for image in coco["images"]:
            if image["task_id"] == task_id:
                return [
                    {**a, "name": names[a["category_id"]]} for a in coco["annotations"] if a["image_id"] == image["id"]
                ]
    raise AssertionError(f"no image of task {task_id}")


def report_of(snapshot: Snapshot) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((snapshot.directory / "corrections.json").read_text())
    return report


def test_tasks_become_a_set_with_what_was_corrected(tmp_path: Path) -> None:
    snapshot = frozen(TASKS, tmp_path)
    manifest = snapshot.manifest
    assert snapshot.classes == ("car", "cat")
    assert (manifest["project"], manifest["annotation_ids"]) == ("12", [10, 20, 30, 40, 50])
    assert manifest["newest_annotation_at"] == "2026-11-22T10:05:00+00:00"
    assert manifest["predicted_values"] == {"car": ["vehicle"]}
    assert (manifest["counts"]["images"], manifest["counts"]["empty_images"]) == (5, 1)
    expected = {
        1: [("car", "kept", 0.5), ("cat", "kept", 0.5)],
        2: [("car", "moved", 2.0)],
        3: [("car", "added", 1.0)],  # nothing had been shown
        4: [],
        5: [("car", "added", 2.0)],
    }
    for task_id, rows in expected.items():
        left_out = sorted(
            (a["name"], a["correction"], a["weight"]) for a in objects_of(snapshot, task_id) if not a["iscrowd"]
        )
        assert left_out == rows
    (moved_object,) = objects_of(snapshot, 2)
    assert decode_rle(moved_object["segmentation"]).sum() == 20 * 30
    band_hw = decode_rle(moved_object["moved_band"])
    assert band_hw[25:35, 5:25].all()
    assert not band_hw[:20].any()
    totals = report_of(snapshot)["totals"]
    assert [totals[key] for key in ("predicted", "kept", "moved", "deleted", "added", "unseen")] == [5, 2, 1, 2, 1, 1]
    assert (totals["images_untouched"], totals["seconds"]) == (1, 50.0)
    reason = "the polygon is not closed: it was never finished"
    assert report_of(snapshot)["left_out"] == [
        {"task": 5, "annotation": 50, "region": "open", "reason": reason, "lost": True}
    ]
    assert {path.name for path in (snapshot.directory / "pictures").iterdir()} == {"moved.png"}
    assert "| **all** |" in (snapshot.directory / "report.md").read_text()


def test_the_order_of_tasks_changes_nothing(tmp_path: Path) -> None:
    first, other = frozen(TASKS, tmp_path / "one"), frozen(TASKS[::-1] + TASKS[:2], tmp_path / "other")
    assert first.digest == other.digest
    for name in ("train.json", "holdout.json", "corrections.json", "report.md"):
        assert (first.directory / name).read_bytes() == (other.directory / name).read_bytes()


def test_bad_parts_cost_only_themselves(tmp_path: Path) -> None:
    skipped_task = task(6, [CAR])
    skipped_task["annotations"][0]["was_cancelled"] = True
    tasks = [
        TASKS[0],
        skipped_task,
        task(7, [CAR]),
        task(8, [region("x", (1, 1, 9, 9), "bus"), region("y", (1, 1, 9, 9), points=[[0, 0]]), CAR]),
        task(9),  # nobody has annotated it
        task(11, [CAR]),
        task(12, [CAR], data={}),
        task(13, [region("z", (1, 1, 9, 9), closed=False)]),  # not an image without objects
        task(14, [region("w", (1, 1, 9, 9), "bus")]),  # of a label that is not asked for any more
    ]

    def failing(row: Mapping[str, Any], value_key: str) -> bytes:
        if row["id"] == 7:
            raise ImageError("the server answers 404", value="/x", expected="an image", fix="upload it")
        return (
            b"not an image"
            if row["id"] == 11
            else fetch(row, value_key)
            if row["data"]
            else ImageFolder(tmp_path).fetch(row, value_key)
        )

    snapshot = frozen(tasks, tmp_path / "out", failing)
    left_out = {(entry["task"], entry["region"]): entry["reason"] for entry in report_of(snapshot)["left_out"]}
    words = {
        (6, ""): "skipped by the annotator",
        (7, ""): "answers 404",
        (8, "x"): "'bus' is not among the labels",
        (8, "y"): "at least 3 points",
        (11, ""): "not an image",
        (12, ""): "a task has no image",
        (13, "z"): "not closed",
        (14, "w"): "'bus' is not among the labels",
    }
    assert set(left_out) == set(words)
    assert all(words[place] in reason for place, reason in left_out.items())
    # What an unfinished outline or a label of former times surrounds is ignored, not background.
    assert [a["iscrowd"] for a in objects_of(snapshot, 13)] == [1, 1]
    assert [a["iscrowd"] for a in objects_of(snapshot, 14)] == [1, 1]
    assert snapshot.manifest["counts"]["images"] == 4
    assert sum(snapshot.manifest["left_out"].values()) == 8


def test_without_any_image_the_reasons_are_told(tmp_path: Path) -> None:
    def failing(row: Mapping[str, Any], value_key: str) -> bytes:
        raise OSError("the disk is gone")

    with pytest.raises(ServiceError, match="task 5: its image cannot be had: the disk is gone") as raised:
        frozen(TASKS[4:], tmp_path, failing)
    assert "at least one annotated task" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_an_image_of_two_tasks_counts_once(tmp_path: Path) -> None:
    def same(row: Mapping[str, Any], value_key: str) -> bytes:
        return png(1, **({"compress_level": 1} if row["id"] == 3 else {}))

    later, starred = frozen([TASKS[0], TASKS[2]], tmp_path / "a", same), task(1, [CAT])
    assert [a["name"] for a in objects_of(later, 3)] == ["car"]
    (left,) = report_of(later)["left_out"]
    assert (left["task"], "also that of task 3" in left["reason"]) == (1, True)
    starred["annotations"][0]["ground_truth"] = True
    first = frozen([starred, TASKS[2]], tmp_path / "b", same)
    assert [a["name"] for a in objects_of(first, 1)] == ["cat"]


def test_annotators_may_vote(tmp_path: Path) -> None:
    votes = task(1, [CAR, CAT], [CAR], [CAR, region("c", (40, 32, 48, 39))], shown=[CAR, CAT])
    latest = frozen([votes], tmp_path / "latest")
    assert len(objects_of(latest, 1)) == 2
    snapshot = frozen([votes], tmp_path / "agreement", choice="agreement")
    rows = sorted((a["name"], a["iscrowd"], a["correction"], a["weight"]) for a in objects_of(snapshot, 1))
    assert rows == [("car", 0, "kept", 0.5), ("car", 1, "added", 0.0), ("cat", 1, "added", 0.0)]
    report = report_of(snapshot)
    assert report["totals"]["deleted"] == 0  # a disputed object was not deleted
    assert report["totals"]["seconds"] == 30.0  # all three looked at it
    assert [entry["region"] for entry in report["left_out"]] == ["b", "c"]
    assert snapshot.manifest["annotation_ids"] == [10, 11, 12]


@pytest.mark.parametrize(
    ("options", "suffix"),
    [
        ({"format": "PNG"}, ".png"),
        ({"format": "JPEG"}, ".jpg"),
        ({"format": "WEBP", "lossless": True}, ".webp"),
        ({"format": "BMP"}, ".png"),
        ({"format": "JPEG", "turned": 6}, ".jpg"),
    ],
)
def test_files_are_kept_where_they_decode_alike(options: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    if (turned := options.pop("turned", None)) is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = turned
    size = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)  # as the editor shows it
    row = task(3, [CAR | {"original_width": size[0], "original_height": size[1]}])
    snapshot = frozen([row], tmp_path, lambda row, key: png(1, **options))
    (path,) = snapshot.images.iterdir()
    assert path.suffix == suffix
    sample = (snapshot.open_set("train") or snapshot.open_set("holdout"))[0]
    assert sample.image.shape == ((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3))
    assert path.stem == pixels_sha256(sample.image)


def test_transparent_images_are_kept_as_they_were_shown(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGBA", (WIDTH, HEIGHT), (200, 0, 0, 0)).save(data, "PNG")
    snapshot = frozen([TASKS[2]], tmp_path, lambda row, key: data.getvalue())
    sample = (snapshot.open_set("train") or snapshot.open_set("holdout"))[0]
    assert (sample.image == 255).all()  # white behind it, as the editor draws it


def test_a_label_config_without_outlines_is_refused(tmp_path: Path) -> None:
    client: Any = FakeLabelStudio(TASKS, "<View><Text name='t' value='$text'/></View>")
    with pytest.raises(UnsupportedConfigError, match="No snapshot can be taken"):
        take_snapshot(client, 1, fetch, tmp_path)


def test_progress_is_told(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    labelling = Labelling.of_config(CONFIG)
    freeze_tasks(TASKS, labelling, fetch, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 5) for n in range(1, 6)]


# The command


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An exported file, and a folder of images without Label Studio's prefix."""
    (tmp_path / "images").mkdir()
    for row in TASKS:
        (tmp_path / "images" / f"photo-{row['id']}.png").write_bytes(png(row["id"]))
    (tmp_path / "export.json").write_text(json.dumps(TASKS))
    return tmp_path


def run(folder: Path, *arguments: str) -> Result:
    fixed = ["snapshot", "--export", str(folder / "export.json"), "--out", str(folder / "out")]
    return CliRunner().invoke(cli, [*fixed, *arguments])


def test_an_exported_file_becomes_the_same_snapshot(exported: Path) -> None:
    (exported / "config.xml").write_text(CONFIG)
    images, config = str(exported / "images"), str(exported / "config.xml")
    result = run(exported, "--images", images, "--label-config", config, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["digest"] == frozen(TASKS, exported / "live").digest
    assert facts["counts"]["images"] == facts["totals"]["images"] == 5
    plain = run(exported, "--images", images)  # labels and key of the image from the export itself
    assert plain.exit_code == 0, plain.output
    assert "| **all** |" in plain.stdout
    assert facts["digest"] in plain.stdout


@pytest.mark.parametrize(
    ("export", "arguments", "words"),
    [
        (None, [], "--export needs --images"),
        (None, ["--images", "nowhere"], "There is no folder nowhere"),
        ("{", ["--images", "."], "is not JSON"),
        ("{}", ["--images", "."], "holds a dict"),
        ("[]", ["--images", "."], "0 labels"),
    ],
)
def test_wrong_input_is_told(export: str | None, arguments: list[str], words: str, exported: Path) -> None:
    if export is not None:
        (exported / "export.json").write_text(export)
    result = run(exported, *arguments)
    assert result.exit_code != 0
    assert words in result.output + str(result.exception)


def test_a_project_needs_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(cli, ["snapshot", "--url", "http://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "expected the number of a project" in result.output


@pytest.mark.parametrize(
    ("value", "file_upload", "text"),
    [
        ("/data/upload/3/0123abcd-one.png", "", "one.png"),
        ("/data/upload/3/0123abcd-one.png", "0123abcd-one.png", "one.png"),
        ("http://host/data/local-files/?d=sub%20dir/two.png", "", "sub dir/two.png"),
        ("s3://bucket/deep/sub dir/two.png", "", "sub dir/two.png"),
        ("/data/upload/3/0123abcd-Photo_1_2.png", "", "Photo 1 (2).png"),
        ("/data/upload/3/one-two-one.png", "", None),  # no prefix of eight digits
        ("https://host/a/../../etc/passwd", "", None),
    ],
)
def test_images_are_found_by_name(value: str, file_upload: str, text: str | None, tmp_path: Path) -> None:
    (tmp_path / "sub dir").mkdir()
    for name in ("one.png", "sub dir/two.png", "Photo 1 (2).png"):
        (tmp_path / name).write_text(name)
    row = {"id": 1, "data": {"image": value}, "file_upload": file_upload}
    if text is None:
        with pytest.raises(ServiceError, match="has no file"):
            ImageFolder(tmp_path).fetch(row, "image")
    else:
        assert ImageFolder(tmp_path).fetch(row, "image").decode() == text


def test_two_files_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.png").write_text(folder)
    with pytest.raises(ServiceError, match="2 files"):
        ImageFolder(tmp_path).fetch({"data": {"image": "one.png"}}, "image")
    assert ImageFolder(tmp_path).fetch({"data": {"image": "b/one.png"}}, "image") == b"b"
