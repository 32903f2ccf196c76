"""`transfiner export` of an exported file: every format, counts, fidelity, and sources that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from backend.cli.main import cli
from backend.cli.train.snapshot import read_rows
from backend.errors import ServiceError
from integration.regions.write import Output
from tests.support.regions import config_xml, instance, predict

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
        (("--export", broken), "expected a list of objects"),
    ):
        answer = run(*arguments)
        assert answer.exit_code
        assert words in answer.output + str(answer.exception)


def test_a_json_min_export_is_named(tmp_path: Path) -> None:
    path = tmp_path / "min.json"
    path.write_text(json.dumps([{"id": 1, "image": "/data/a.png", "label": [], "annotator": 1, "annotation_id": 2}]))
    with pytest.raises(ServiceError, match="JSON-MIN"):
        read_rows(path)
