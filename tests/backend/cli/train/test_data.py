"""`transfiner data check` of Label Studio's exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backend.cli.main import cli
from tests.support.damaged_sets import CONFIG, HEIGHT, WIDTH, write_set


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


@pytest.mark.parametrize(
    ("options", "images", "words"),
    [
        (("--fix", "copy"), None, "transfiner export writes one"),
        ((), "nowhere", "There is no folder nowhere"),
        ((), ":c.xml", "expected label-studio:EXPORT.json:IMAGES/"),
    ],
)
def test_what_cannot_be_checked_is_said(options: Any, images: Any, words: str, tmp_path: Path) -> None:
    write_set("label-studio", tmp_path)
    answer = check(tmp_path, *options, images=images)
    assert answer.exit_code
    assert words in answer.output + str(answer.exception)
