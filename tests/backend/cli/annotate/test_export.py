"""`transfiner export` of an exported file: every format, counts, fidelity, and sources that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from backend.cli.main import cli
from backend.cli.train.snapshot import read_rows
from backend.learning.snapshot import ImageFolder, Labelling, SnapshotSettings, freeze_tasks
from integration.label_studio.label_config import Output
from integration.label_studio.tasks import rows_of_json_min
from tests.support.regions import config_xml, instance, predict
from training.finetune.plan import SnapshotSamples

OUTPUT = Output(kind="polygon", tolerance_px=0, min_area_px=0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)])


@pytest.fixture
def export_file(tmp_path: Path) -> Path:
    parts = np.zeros((40, 60), bool)
    parts[5:20, 5:20] = parts[22:35, 5:20] = True
    result = predict([instance(parts), instance(label="pine")], output=OUTPUT)[0]["result"]
    annotation = {"id": 1, "updated_at": "2026-01-01T00:00:00Z", "result": result}
    rows = [{"id": 1, "data": {"image": "/data/a.jpg"}, "annotations": [annotation]}]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(rows))
    return path


def test_every_format_is_written_and_counted(export_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.xml"
    config.write_text(config_xml())
    formats = ("--format", "coco", "--format", "lvis", "--format", "yolo")
    answer = run("--export", export_file, "--label-config", config, "--out", tmp_path / "out", *formats, "--json")
    assert answer.exit_code == 0, answer.output
    facts = json.loads(answer.stdout)
    assert (facts["images"], facts["objects"], facts["regions"]) == (1, 2, 2)
    assert (facts["classes"]["car"], facts["classes"]["tree"]) == (1, 1)
    assert facts["fidelity"]["least_iou"] == 1.0
    assert len(json.loads((tmp_path / "out" / "coco.json").read_text())["annotations"]) == 2
    assert len(json.loads((tmp_path / "out" / "lvis.json").read_text())["annotations"]) == 2
    assert len((tmp_path / "out" / "yolo" / "labels" / "a.txt").read_text().splitlines()) == 2


def test_people_read_counts_and_iou(export_file: Path, tmp_path: Path) -> None:
    answer = run("--export", export_file, "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.output
    assert "1 images, 2 objects from 2 regions" in answer.output
    assert "least 1.0000" in answer.output


def test_a_source_that_is_none_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for arguments, words in (
        ((), "choose one source"),
        (("--project", 1, "--export", broken), "choose one source"),
        (("--export", broken), "expected a list of tasks"),
    ):
        answer = run(*arguments)
        assert answer.exit_code
        assert words in answer.output + str(answer.exception)


POLYGON = {"points": [[10, 10], [60, 10], [60, 60], [10, 60]], "closed": True}
SIZE = {"original_width": 60, "original_height": 40}
CONFIGS = {
    "labels": '<PolygonLabels name="label" toName="image"><Label value="gear"/></PolygonLabels>',
    "paired": '<Labels name="label" toName="image"><Label value="gear"/></Labels><Polygon name="shape" toName="image"/>'
    '<Choices name="quality" toName="image"><Choice value="good"/></Choices>',
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_json_min_export_holds_the_same_objects(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What Label Studio's own converter makes of an export is read as the export itself."""
    from label_studio_sdk.converter import Converter

    xml = f'<View><Image name="image" value="$image"/>{CONFIGS[kind]}</View>'
    common = {"to_name": "image", **SIZE}
    region = {"id": "a", "from_name": "label", "type": "polygonlabels", "value": POLYGON | {"polygonlabels": ["gear"]}}
    result = [common | region]
    if kind == "paired":
        labels = {"type": "labels", "from_name": "label", "value": POLYGON | {"labels": ["gear"]}}
        result = [
            common | region | {"from_name": "shape", "type": "polygon", "value": POLYGON},
            common | region | labels,
            {"from_name": "quality", "to_name": "image", "type": "choices", "value": {"choices": ["good"]}},
        ]
    annotations = [{"id": 3 + n, "result": result, "completed_by": 1, "was_cancelled": False} for n in range(2)]
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps([{"id": 7, "data": {"image": "/data/upload/1/a.png"}, "annotations": annotations}]))
    Converter(xml, str(tmp_path), download_resources=False).convert_to_json_min(str(whole), str(tmp_path), is_dir=False)
    (tmp_path / "config.xml").write_text(xml)
    rows = read_rows(tmp_path / "result.json")
    assert "JSON-MIN" in capsys.readouterr().err
    assert [(row["id"], [entry["id"] for entry in row["annotations"]]) for row in rows] == [(7, [3, 4])]
    counts = []
    for name in ("whole", "result"):
        arguments = ("--export", tmp_path / f"{name}.json", "--label-config", tmp_path / "config.xml", "--json")
        answer = run(*arguments, "--out", tmp_path / name)
        coco = json.loads((tmp_path / name / "coco.json").read_text())
        counts.append([(entry["segmentation"], entry["area"]) for entry in coco["annotations"]])
        assert answer.exit_code == 0
    assert counts[0] == counts[1]
    assert len(counts[0]) == 1


def test_rows_without_ids_and_ids_as_text_stay_apart(tmp_path: Path) -> None:
    region = {"type": "polygonlabels", "from_name": "label", "to_name": "image", **SIZE}
    rows = [
        {
            "data": {"image": f"/data/{name}.png"},
            "annotations": [{"id": "5", "result": [region | {"value": POLYGON | {"polygonlabels": ["gear"]}}]}],
        }
        | ({} if number is None else {"id": number})
        for name, number in (("a", None), ("b", None), ("c", "12"), ("d", "12"))
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(rows))
    answer = run("--export", path, "--out", tmp_path / "out", "--json")
    assert json.loads(answer.stdout)["images"] == 4
    (tmp_path / "images").mkdir()
    for shade, name in enumerate("abcd"):
        Image.new("RGB", (60, 40), (60 * shade, 0, 0)).save(tmp_path / "images" / f"{name}.png")
    folder = freeze_tasks(
        read_rows(path),
        Labelling.of_rows(rows),
        ImageFolder(tmp_path / "images").fetch,
        tmp_path / "snapshots",
        settings=SnapshotSettings(holdout_share=0),
    )
    assert len(SnapshotSamples(folder)) == 4


MIN = {"id": 7, "image": "a.png", "annotator": 1, "annotation_id": 3}
REGION = {"original_width": 60, "original_height": 40, **POLYGON, "polygonlabels": ["gear"]}


@pytest.mark.parametrize(
    ("rows", "annotations"),
    [
        ([MIN | {"label": [REGION], "pages": [{"url": "b.png", "width": 3}], "agreement": 1.0}], [1]),
        ([MIN | {"label": [REGION]}, MIN | {"id": 8, "annotation_id": None, "annotator": ""}], [1, 0]),
        ([MIN], [1]),
    ],
)
def test_data_of_a_json_min_export_is_no_region(rows: list[dict[str, Any]], annotations: list[int]) -> None:
    tasks = rows_of_json_min(rows)
    assert [len(task["annotations"]) for task in tasks] == annotations
    assert [entry["type"] for entry in tasks[0]["annotations"][0]["result"]] == ["polygonlabels"] * ("label" in rows[0])
    assert set(tasks[0]["data"]) <= {"image", "pages"}


@pytest.mark.parametrize("size", [(60.0, 40.0), ("60", "40")])
def test_sizes_of_other_tools_are_read(size: tuple[Any, Any], export_file: Path, tmp_path: Path) -> None:
    rows = json.loads(export_file.read_text())
    for region in rows[0]["annotations"][0]["result"]:
        region["original_width"], region["original_height"] = size
    export_file.write_text(json.dumps(rows))
    answer = run("--export", export_file, "--out", tmp_path / "out", "--json")
    assert json.loads(answer.stdout)["objects"] == 2
