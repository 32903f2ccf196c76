"""`transfiner predict` in its three formats, with a small random network and pictures of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pycocotools import mask as coco_mask

from backend.cli.annotate.predict import address_under, category_ids_of, draw_overlay, image_id_of, predict
from integration.images.fetch import decode_data_uri
from integration.label_studio.label_config import parse_label_config
from model.checkpoints.checkpoint import save_checkpoint
from model.checkpoints.import_released import known_classes
from model.instance import Instance
from tests.support.small_network import CLASSES, small_config, small_model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    metadata = {"name": "small", "version": "small-7", "classes": list(CLASSES)}
    save_checkpoint(store / "small", small_config(), small_model(), metadata)
    return store


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise; the second one is stored turned, so that only EXIF makes it 60 wide and 100 high."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(folder / "000000000042.jpg")
    Image.fromarray(noise).save(folder / "turned.jpg", exif=exif)
    return [folder / "000000000042.jpg", folder / "turned.jpg"]


def run(store: Path, *arguments: object) -> Result:
    options = ["--model", "small", "--store", str(store), "--device", "cpu", "--score-threshold", "0"]
    return CliRunner().invoke(predict, [*options, *[str(argument) for argument in arguments]])


def test_coco_results_go_to_standard_output(store: Path, pictures: list[Path]) -> None:
    result = run(store, *pictures)
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert {record["image_id"] for record in records} == {42, 2}
    for record in records:
        assert record["category_id"] == CLASSES.index(record["category"]) + 1
        size_hw = coco_mask.decode(record["segmentation"]).shape
        assert size_hw == ((60, 100) if record["image_id"] == 42 else (100, 60))
        assert len(record["bbox"]) == 4
        assert min(record["bbox"]) >= 0


@pytest.mark.parametrize(
    "record",
    [
        {"image_id": 42, "category_id": 1},
        {"image_id": "000000000042.jpg", "category_id": "1"},
        {"file_name": "000000000042.jpg", "category": "person"},
        {"file_name": "C:\\photos\\000000000042.jpg", "category": "person"},
    ],
)
def test_boxes_of_another_detector_are_outlined(record: dict[str, Any], pictures: list[Path], tmp_path: Path) -> None:
    box = {"bbox": [10, 10, 40, 30], "score": 0.9}
    other = {**box, **record, "file_name": "elsewhere.jpg"}
    records = [{**box, **record}, {**box, **record, "score": 0.1}, other]
    (tmp_path / "boxes.json").write_text(json.dumps(records), encoding="utf-8-sig")
    arguments = [*map(str, pictures), "--boxes", str(tmp_path / "boxes.json"), "--device", "cpu"]
    result = CliRunner().invoke(predict, arguments)
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)
    assert (entry["image_id"], entry["category"], entry["score"]) == (42, "person", 0.9)
    assert coco_mask.decode(entry["segmentation"]).any()
    assert "1 images of " in result.stderr
    assert "such as 'elsewhere.jpg'" in result.stderr


@pytest.mark.parametrize("records", [{}, [{"bbox": [1, 2, 3, 4], "score": 1}], [{"image_id": 1, "bbox": [1]}]])
def test_files_that_hold_no_boxes_are_refused(records: Any, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps(records))
    result = CliRunner().invoke(predict, [str(pictures[0]), "--boxes", str(tmp_path / "boxes.json")])
    assert result.exit_code == 1
    assert "boxes.json" in result.output


def test_label_studio_tasks_go_to_a_file(store: Path, pictures: list[Path], tmp_path: Path) -> None:
    result = run(store, *pictures, "--format", "label-studio", "--output", tmp_path / "new" / "tasks.json")
    assert result.exit_code == 0, result.output
    tasks = json.loads((tmp_path / "new" / "tasks.json").read_text())
    # Without a prefix Label Studio gets the files themselves: it cannot show paths of this machine.
    for task, picture in zip(tasks, pictures, strict=True):
        assert decode_data_uri(task["data"]["image"], 10**6) == picture.read_bytes()
    [first], [second] = (task["predictions"] for task in tasks)
    assert first["model_version"] == "small-7"
    sizes = {(r["original_width"], r["original_height"]) for r in first["result"] if "original_width" in r}
    assert sizes <= {(100, 60)}
    assert all(r["original_width"] == 60 for r in second["result"] if "original_width" in r)


def test_label_studio_tasks_follow_a_given_config(store: Path, pictures: list[Path], tmp_path: Path) -> None:
    config = tmp_path / "config.xml"
    config.write_text(
        '<View><Image name="img" value="$photo"/><RectangleLabels name="box" toName="img">'
        '<Label value="Leaf"/><Label value="gear"/></RectangleLabels></View>'
    )
    options = ["--format", "label-studio", "--image-prefix", "https://host/", "--label-config", config]
    result = run(store, pictures[0], *options)
    [task] = json.loads(result.stdout)
    assert task["data"] == {"photo": f"https://host{pictures[0]}"}
    assert {region["type"] for region in task["predictions"][0]["result"]} <= {"rectanglelabels"}


def test_overlays_are_pictures_of_the_same_size(store: Path, pictures: list[Path], tmp_path: Path) -> None:
    result = run(store, *pictures, "--format", "overlay", "--output", tmp_path / "out", "--json")
    paths = [Path(name) for name in json.loads(result.stdout)]
    assert [file.name for file in paths] == ["000000000042.png", "turned.png"]
    sizes = []
    for file in paths:
        with Image.open(file) as image:
            sizes.append(image.size)
    assert sizes == [(100, 60), (60, 100)]


def test_a_broken_image_is_reported_and_the_others_go_on(store: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    files = [tmp_path / "broken.jpg", pictures[0], tmp_path / "none.jpg"]
    result = run(store, *files, "--format", "label-studio", "--image-prefix", "")
    assert result.exit_code == 1
    assert "broken.jpg is not an image that can be decoded" in result.stderr
    assert "none.jpg" in result.stderr
    assert [task["data"]["image"] for task in json.loads(result.stdout)] == [str(pictures[0])]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "nix"], 1, "no checkpoint 'nix'"),
        (["--device", "toaster"], 2, "'toaster'; expected auto, cpu, cuda"),
        (["--score-threshold", "2"], 2, "not in the range"),
        (["--format", "label-studio", "--label-config", "none.xml"], 2, "none.xml"),
        (["--format", "label-studio", __file__], 1, "ends in '.py'; a task holds files of at most"),
    ],
)
def test_wrong_use_is_named(store: Path, pictures: list[Path], arguments: list[str], code: int, message: str) -> None:
    result = run(store, pictures[0], *arguments)
    assert result.exit_code == code
    assert message in result.stderr


def test_an_unsupported_label_config_is_named(store: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text("<View><Text name='t' value='$text'/></View>")
    assert not parse_label_config((tmp_path / "config.xml").read_text()).supported
    result = run(store, pictures[0], "--format", "label-studio", "--label-config", tmp_path / "config.xml")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")


def test_category_ids_are_cocos_own_for_its_classes() -> None:
    names = known_classes(80)
    assert names is not None
    assert category_ids_of(names)["toothbrush"] == 90
    assert category_ids_of(("b", "a")) == {"b": 1, "a": 2}
    assert [image_id_of(Path("x/000000008844.jpg"), 0), image_id_of(Path("x/a1.jpg"), 0)] == [8844, 1]


def test_overlay_tints_inside_and_outlines_the_edge() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    instance = Instance((20, 10, 50, 30), "gear", 0.9, mask)
    picture = np.asarray(draw_overlay(np.zeros((40, 60, 3), np.uint8), [instance]))
    assert picture.shape == (40, 60, 3)
    assert tuple(picture[29, 35]) == (255, 51, 51)  # the outline, in the first colour
    assert 0 < picture[25, 35, 0] < 255  # tinted
    assert tuple(picture[35, 55]) == (0, 0, 0)  # untouched


def test_addresses_that_label_studio_can_show(tmp_path: Path) -> None:
    local = address_under("/data/local-files/?d=photos/")
    assert local(Path("./a dir/b#1.png")) == "/data/local-files/?d=photos/a%20dir/b%231.png"
    assert address_under("")(Path("a/b.png")) == "a/b.png"
    (tmp_path / "a.png").write_bytes(b"123")
    assert address_under("data")(tmp_path / "a.png") == "data:image/png;base64,MTIz"
    (tmp_path / "b.tif").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"b\.tif has 3 bytes"):
        address_under("data")(tmp_path / "b.tif")
