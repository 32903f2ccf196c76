"""Report of a table: the paper's figures beside the measured ones, differences marked; report.json and report.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from model.files import write_text
from training.benchmark.tables import COLUMNS, Row, Table

Results = dict[str, list[dict[str, Any]]]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return lines + ["| " + " | ".join(map(str, cells)) + " |" for cells in rows]


def build_table_report(table: Table, results: Results, *, setting: dict[str, Any]) -> dict[str, Any]:
    """Everything about a run of a table.

    ``rows[].measured[column]`` has mean, std (NaN-free; 0 for one seed) and the values of all seeds, in the unit the
    paper prints; ``difference`` is measured minus paper.
    """
    rows = []
    for row in table.rows:
        measured = {column: summary for column in table.columns() if (summary := _summary(results, row, column))}
        rows.append(
            {
                "row": row.key,
                "name": row.name,
                "quoted": row.quoted,
                "note": row.note,
                "paper": dict(row.paper),
                "measured": measured,
                "difference": {
                    column: summary["mean"] - row.paper[column]
                    for column, summary in measured.items()
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
    """The report for people."""
    columns = report["columns"]
    lines = [f"# Table {report['table']}: {report['title']}", ""]
    lines += [f"- {key}: {value}" for key, value in report["setting"].items()]
    lines += [f"- {report['note']}"] if report["note"] else []
    lines += [
        "",
        "A cell is paper / **measured** (difference); _quoted_ rows were not run; - is not measured.",
        "",
        *markdown_table(
            ["", *(COLUMNS[column][0] for column in columns)],
            (
                [
                    f"_{row['name']} (quoted)_" if row["quoted"] else row["name"],
                    *(_cell(row, column) for column in columns),
                ]
                for row in report["rows"]
            ),
        ),
    ]
    notes = [f"- {row['name']}: {row['note']}" for row in report["rows"] if row["note"] and not row["quoted"]]
    return "\n".join(lines + (["", *notes] if notes else [])) + "\n"


def _cell(row: dict[str, Any], column: str) -> str:
    paper = f"{row['paper'][column]:g}" if column in row["paper"] else "-"
    summary = row["measured"].get(column)
    if summary is None:
        return paper if row["quoted"] else f"{paper} / -"
    spread = f" ± {summary['std']:.1f}" if len(summary["values"]) > 1 else ""
    marked = f" ({row['difference'][column]:+.1f})" if column in row["difference"] else ""
    return f"{paper} / **{summary['mean']:.1f}**{spread}{marked}"


def write_table_report(folder: Path, report: dict[str, Any]) -> str:
    """Write report.json and report.md; return the text of the latter."""
    text = table_report_markdown(report)
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / "report.md", text)
    return text
