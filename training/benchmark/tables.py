"""The paper's tables, from tables.yaml, and their reports: the paper's figures beside the measured ones.

A table has rows of configurations with the paper's figures, and a data set. Tables 1 to 8 are the analysis of
incoherent regions and the ablations, on COCO val with an R50-FPN; 9 to 12 compare with other methods. Those that run on
the same base are run, the others quoted.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from model.files import write_text

Overrides = Mapping[str, Any]

# Columns in the order they are printed: key -> (heading, unit factor of the printed value).
COLUMNS: dict[str, tuple[str, float]] = {
    **{name: (name, 100) for name in ("Percent", "Recall_Err", "Acc", "Recall", "AP_GT", "AP_Coarse", "AP", "AP50")},
    **{"APB": ("AP^B", 100), "APB50": ("AP^B50", 100), "AP*": ("AP*", 100), "AP*50": ("AP*50", 100)},
    **{"APbox": ("AP^box", 100), "APs": ("APs", 100), "APm": ("APm", 100), "APl": ("APl", 100)},
    **{"GFLOP": ("GFLOP", 1), "MB": ("memory MB", 1), "FPS": ("FPS", 1)},
}
_HEAD = "MODEL.TRANSFINER."
_QUOTED = "not built here: the paper's figures alone"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        key: name of its folder, unique in its table. name: as the paper prints it.
        paper: column -> the paper's figure (AP in points).
        config: to train, under ``model/configs/``; None: a method that is quoted, not run.
        change: configuration keys that differ from ``config``.
        change_test: keys that differ only when the trained network is measured.
        note: a remark for the report's readers.
    """

    key: str
    name: str
    paper: Mapping[str, float]
    config: str | None = None
    change: Overrides = field(default_factory=dict)
    change_test: Overrides = field(default_factory=dict)
    note: str = ""

    @property
    def quoted(self) -> bool:
        """Whether only the paper's figures are shown."""
        return self.config is None


@dataclass(frozen=True)
class DataSet:
    """Data set of a table; ``{data}`` in a name is the user's folder.

    Attributes:
        train, test: names for :func:`training.datasets.open_set`. lvis: LVIS annotations of the test images, or "".
        ratio: boundary width / image diagonal. needs: files that the folder must hold.
        change: configuration keys for this set (classes, image sizes, schedule).
    """

    title: str
    train: str
    test: str
    needs: str
    lvis: str = ""
    ratio: float = 0.02
    change: Overrides = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        note: intended differences between the paper and this run.
    """

    number: int
    title: str
    data: DataSet
    rows: tuple[Row, ...]
    note: str = ""

    def columns(self) -> list[str]:
        """The columns that any row of the paper fills, in printing order."""
        paper_columns = {column for row in self.rows for column in row.paper}
        return [column for column in COLUMNS if column in paper_columns]


def _read_row(key: str, facts: dict[str, Any], columns: list[str]) -> Row:
    head = dict(facts.get("head", {}))
    if "levels" in facts:
        half = (0.5,) * len(facts["levels"])  # no list: written out as one object it would change a digest
        head |= {"LEVEL_SIZES": facts["levels"], "THRESHOLDS_TRAIN": half, "THRESHOLDS_TEST": half}
    config = facts.get("config")
    return Row(
        key,
        facts["name"],
        dict(zip(columns, facts["paper"], strict=True)),
        config,
        {_HEAD + name: value for name, value in head.items()} | facts.get("change", {}),
        {_HEAD + name: value for name, value in facts.get("head_test", {}).items()},
        facts.get("note", "" if config else _QUOTED),
    )


def _read_tables(content: dict[str, Any]) -> dict[int, Table]:
    return {
        number: Table(
            number,
            facts["title"],
            DataSet(**content["sets"][facts["set"]]),
            tuple(_read_row(key, row, facts["columns"].split()) for key, row in facts["rows"].items()),
            facts.get("note", ""),
        )
        for number, facts in content["tables"].items()
    }


_CONTENT = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
TABLES = _read_tables(_CONTENT)
MINIATURE: Overrides = _CONTENT["miniature"]


def digest(*parts: Any) -> str:
    """Short hash of some values: equal for equal configurations and data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def as_list(change: Overrides) -> list[Any]:
    """Overrides as the list that ``merge_from_list`` takes."""
    return [part for pair in change.items() for part in pair]


Results = dict[str, list[dict[str, Any]]]


def build_table_report(table: Table, results: Results, *, setting: dict[str, Any]) -> dict[str, Any]:
    """Build the report of a table's run, for JSON.

    ``rows[].measured[column]`` has mean, std (0 for one seed) and the values of all seeds, in the paper's unit;
    ``difference`` is measured minus paper.
    """
    rows = []
    for row in table.rows:
        summaries = {column: summary for column in table.columns() if (summary := _summary(results, row, column))}
        rows.append(
            {
                "row": row.key,
                "name": row.name,
                "quoted": row.quoted,
                "note": row.note,
                "paper": dict(row.paper),
                "measured": summaries,
                "difference": {
                    column: summary["mean"] - row.paper[column]
                    for column, summary in summaries.items()
                    if column in row.paper
                },
                "runs": results.get(row.key, []),
            }
        )
    return {
        "table": table.number,
        "title": table.title,
        "note": table.note,
        "setting": setting,
        "columns": table.columns(),
        "rows": rows,
    }


def _summary(results: Results, row: Row, column: str) -> dict[str, Any] | None:
    factor = COLUMNS[column][1]
    runs = [run["values"].get(column) for run in results.get(row.key, [])]
    values = [value * factor for value in runs if value is not None]
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": spread, "values": values}


def table_report_markdown(report: dict[str, Any]) -> str:
    """Write a report as Markdown."""
    columns = report["columns"]
    lines = [f"# Table {report['table']}: {report['title']}", ""]
    lines += [f"- {key}: {value}" for key, value in report["setting"].items()]
    lines += [f"- {report['note']}"] if report["note"] else []
    headings = ["", *(COLUMNS[column][0] for column in columns)]
    cells = [
        [f"_{row['name']} (quoted)_" if row["quoted"] else row["name"], *(_cell(row, column) for column in columns)]
        for row in report["rows"]
    ]
    lines += ["", "A cell is paper / **measured** (difference); _quoted_ rows were not run; - is not measured.", ""]
    lines.append(tabulate(cells, headings, "github", disable_numparse=True))
    notes = [f"- {row['name']}: {row['note']}" for row in report["rows"] if row["note"] and not row["quoted"]]
    return "\n".join(lines + (["", *notes] if notes else [])) + "\n"


def _cell(row: dict[str, Any], column: str) -> str:
    paper = f"{row['paper'][column]:g}" if column in row["paper"] else "-"
    summary = row["measured"].get(column)
    if summary is None:
        return paper if row["quoted"] else f"{paper} / -"
    spread = f" ± {summary['std']:.1f}" if len(summary["values"]) > 1 else ""
    difference = f" ({row['difference'][column]:+.1f})" if column in row["difference"] else ""
    return f"{paper} / **{summary['mean']:.1f}**{spread}{difference}"


def write_table_report(folder: Path, report: dict[str, Any]) -> str:
    """Write report.json and report.md; return the text of the latter."""
    text = table_report_markdown(report)
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / "report.md", text)
    return text
