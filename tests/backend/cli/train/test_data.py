"""`transfiner data check` of Label Studio's exports."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from backend.cli.main import cli
from tests.support.damaged_sets import CONFIG, HEIGHT, WIDTH, pixels, write_set


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks leave pictures in the working directory."""
    monkeypatch.chdir(tmp_path_factory.mktemp("working"))


def check(folder: Path, *options: object, images: object = None) -> Result:
    name = f"label-studio:{folder / 'truth.json'}:{images or folder}"
    return CliRunner().invoke(cli, ["data", "check", name, "--json", *map(str, options)])


def json_min(tasks: list[Any]) -> list[Any]:
    """The same annotations as Label Studio's JSON-MIN has them."""
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    rows = []
    for task in tasks:
        (annotation,) = task["annotations"]
        regions = [region["value"] | size for region in annotation["result"]]
        rows.append({"id": task["id"], **task["data"], "label": regions, "annotator": 1, "annotation_id": 5})
    return rows


@pytest.mark.parametrize("is_min", [False, True])
def test_an_export_is_counted_and_drawn(is_min: bool, tmp_path: Path) -> None:
    tmp_path /= "folder: with a colon"
    (truth,) = write_set("label-studio", tmp_path).truths
    if is_min:
        truth.write_text(json.dumps(json_min(json.loads(truth.read_text()))))
    (tmp_path / "config.xml").write_text(CONFIG)
    answer = check(tmp_path, "--sheet", tmp_path / "sheet.png", images=f"{tmp_path}:{tmp_path / 'config.xml'}")
    assert answer.exit_code == 0, answer.output
    outcome = json.loads(answer.stdout)
    assert (outcome["images"], outcome["by_class"]) == (2, {"gear": 2, "key": 1})
    assert (tmp_path / "sheet.png").is_file()
    assert ("JSON-MIN" in answer.stderr) == is_min


@pytest.mark.parametrize("form", ["task", "tasks", "mixed"])
def test_other_forms_of_exports_are_read(form: str, tmp_path: Path) -> None:
    (truth,) = write_set("label-studio", tmp_path).truths
    tasks = json.loads(truth.read_text())
    forms = {"task": tasks[0], "tasks": {"tasks": tasks, "total": 2}, "mixed": [tasks[0], *json_min(tasks[1:])]}
    truth.write_text(json.dumps(forms[form]))
    answer = check(tmp_path)
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["objects"] == (2 if form == "task" else 3)
    assert ("1 of 2 entries" in answer.stderr) == (form == "mixed")


def test_rows_of_json_min_with_one_id_and_other_images_are_other_tasks(tmp_path: Path) -> None:
    (truth,) = write_set("label-studio", tmp_path).truths
    flat = json_min(json.loads(truth.read_text()))
    for number in (None, 5, [1]):
        rows = [row | {"id": number} for row in flat]
        truth.write_text(json.dumps(rows))
        assert json.loads(check(tmp_path).stdout)["by_class"] == {"gear": 2, "key": 1}


def test_a_repaired_copy_of_an_export_is_clean(tmp_path: Path) -> None:
    (truth,) = write_set("label-studio", tmp_path).truths
    tasks = json.loads(truth.read_text())
    box = {"x": 5, "y": 5, "width": 20, "height": 20, "rectanglelabels": ["key"]}
    tasks[0]["annotations"][0]["result"][0] |= {"type": "rectanglelabels", "value": box}
    tasks[1]["annotations"][0]["result"][0]["value"]["points"] = [[1, 1], [50, 50]]
    truth.write_text(json.dumps(tasks))
    answer = check(tmp_path, "--fix", tmp_path / "copy")
    assert answer.exit_code == 1
    copy = json.loads(answer.stdout)["repaired_copy"]["set"]
    clean = CliRunner().invoke(cli, ["data", "check", copy, "--json"])
    assert clean.exit_code == 0, clean.output
    # What is only a box, and what cannot be read (of both classes), is neither object nor background.
    assert [json.loads(clean.stdout)[name] for name in ("images", "objects", "crowds", "lost")] == [2, 1, 3, 0]


def test_an_outline_of_a_turned_picture_is_left_out(tmp_path: Path) -> None:
    folder = write_set("label-studio", tmp_path)
    Image.fromarray(np.rot90(pixels(0)).copy()).save(folder.pictures[0])
    answer = check(tmp_path)
    assert answer.exit_code == 1
    assert "drawn on an image of 40 x 24 pixels, which is no size of this one of 24 x 40" in answer.stdout
    assert json.loads(answer.stdout)["objects"] == 1


def test_what_loses_nothing_is_said_and_ends_with_0(tmp_path: Path) -> None:
    (truth,) = write_set("label-studio", tmp_path).truths
    tasks = json.loads(truth.read_text())
    for region in tasks[0]["annotations"][0]["result"]:
        region |= {"original_width": 100, "original_height": 100}  # as scripts write it who do not look
    tasks[0]["annotations"][0]["result"].append(
        {"id": "c", "type": "choices", "from_name": "light", "to_name": "image", "value": {"choices": ["day"]}}
    )
    tasks[1]["annotations"][0]["result"][0]["value"]["polygonlabels"] = ["gear", "key"]
    truth.write_text(json.dumps(tasks))
    answer = check(tmp_path)
    assert answer.exit_code == 0, answer.output
    outcome = json.loads(answer.stdout)
    assert (outcome["lost"], outcome["problems"]) == (0, {"nothing lost": 3})
    assert Path(outcome["sheet"]) == Path("data-check.png")
    assert Path("data-check.png").is_file()


def test_what_a_snapshot_would_leave_out_is_named(tmp_path: Path) -> None:
    (truth,) = write_set("label-studio", tmp_path).truths
    tasks = json.loads(truth.read_text())
    tasks[0]["annotations"][0]["result"][0]["value"]["points"] = [[1, 1], [2, 2]]
    truth.write_text(json.dumps(tasks))
    answer = check(tmp_path)
    assert answer.exit_code == 1
    (problem,) = json.loads(answer.stdout)["problem_list"]
    assert "truth.json: task 1, annotation 10, region region00: left out: a polygon needs at least 3 points" in problem
    assert json.loads(answer.stdout)["objects"] == 2


def test_an_image_in_its_task_is_read_and_one_that_lacks_is_named(tmp_path: Path) -> None:
    folder = write_set("label-studio", tmp_path)
    tasks = json.loads(folder.truths[0].read_text())
    content = base64.b64encode(folder.pictures[0].read_bytes()).decode()
    tasks[0]["data"]["image"] = f"data:image/png;base64,{content}"  # as `predict --format label-studio` writes it
    folder.pictures[0].unlink()
    folder.truths[0].write_text(json.dumps(tasks))
    answer = check(tmp_path)
    assert (answer.exit_code, json.loads(answer.stdout)["objects"]) == (0, 3)
    tasks[0]["data"]["image"] = None
    folder.truths[0].write_text(json.dumps(tasks))
    answer = check(tmp_path)
    assert (answer.exit_code, json.loads(answer.stdout)["objects"]) == (1, 1)
    assert "task 1, annotation None, region -: left out: its image cannot be had: a task has no image" in answer.stdout


def test_all_pictures_are_read_unless_fewer_are_asked_for(tmp_path: Path) -> None:
    folder = write_set("coco", tmp_path)
    folder.pictures[1].write_bytes(b"")
    for options, code, words in (
        ([], 1, "1 x damaged image"),
        (["--limit", "1", "--pictures", "1"], 0, "1 pictures were not looked at"),
    ):
        answer = CliRunner().invoke(cli, ["data", "check", folder.name, *options])
        assert (answer.exit_code, words in answer.output) == (code, True), answer.output


def test_names_that_no_terminal_shows_are_printed_all_the_same(tmp_path: Path) -> None:
    folder = write_set("coco", tmp_path)
    text = folder.truths[0].read_text().replace("0.png", "\\ud800.png").replace("gear", "\\udfff")
    folder.truths[0].write_text(text)
    answer = CliRunner().invoke(cli, ["data", "check", folder.name])
    assert answer.exit_code == 1
    assert "\\ud800.png is not there" in answer.output


@pytest.mark.parametrize(
    ("options", "images", "words"),
    [((), "nowhere", "There is no folder nowhere"), ((), ":c.xml", "expected label-studio:EXPORT.json:IMAGES/")],
)
def test_what_cannot_be_checked_is_said(options: Any, images: Any, words: str, tmp_path: Path) -> None:
    write_set("label-studio", tmp_path)
    answer = check(tmp_path, *options, images=images)
    assert answer.exit_code
    assert words in answer.output + str(answer.exception)
