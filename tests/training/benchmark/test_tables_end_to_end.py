"""Every table's command end to end, on sets in the exact official layouts, at the smallest scale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.cli.research.benchmark import benchmark
from tests.support.miniature import write_miniature
from training.benchmark.tables import TABLES
from training.datasets.preparation import cocofied

pytestmark = pytest.mark.slow

# One row of each; the rows of Tables 1 to 8 are one training.
ROWS = {
    1: "coarse",
    2: "without-l2",
    3: "guided",
    4: "all",
    5: "depth-3",
    6: "d3-h4",
    7: "transfiner-112",
    8: "mjr",
    9: "transfiner-r50",
    10: "transfiner",
    11: "transfiner",
    12: "transfiner",
}
LAYOUTS = {10: "cityscapes", 11: "bdd100k"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def sets(root: Path) -> dict[str, dict[str, str]]:
    """By layout the names of its splits."""
    size = {"train": 1, "val": 1, "width": 128, "height": 96}
    layouts = ("coco", "lvis", "cityscapes", "bdd100k")
    sets_by_layout = {layout: write_miniature(layout, root / layout, **size) for layout in layouts}
    cut = cocofied(json.loads((root / "lvis" / "lvis_v0.5_val.json").read_text()))
    (root / "cocofied.json").write_text(json.dumps(cut))
    return sets_by_layout


@pytest.mark.parametrize("number", sorted(TABLES))
def test_the_command_runs_and_reports(number: int, root: Path, sets: dict[str, dict[str, str]]) -> None:
    names = sets[LAYOUTS.get(number, "coco")]
    command = [
        str(number),
        "--miniature",
        "--iterations",
        "1",
        "--row",
        ROWS[number],
        "--device",
        "cpu",
        "--json",
        "--lvis",
        "" if number in LAYOUTS else str(root / "cocofied.json"),
        "--train-set",
        names["train"],
        "--test-set",
        names["val"],
        "--speed-iterations",
        "1",
        "--speed-runs",
        "1",
        "--out",
        str(root / "out"),
    ]
    result = CliRunner().invoke(benchmark, command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    table = TABLES[number]
    (row,) = (row for row in report["rows"] if row["row"] == ROWS[number])
    # After one step nothing need match a truth, so some columns may stay empty, but none that always has a figure.
    always = {"AP", "AP*", "APB", "FPS", "GFLOP", "MB", "AP_GT"}
    assert set(row["measured"]) >= always & set(row["paper"])
    assert row["runs"]
    assert report["columns"] == table.columns()
    assert (root / "out" / f"table-{number}" / "report.md").read_text().startswith(f"# Table {number}")
