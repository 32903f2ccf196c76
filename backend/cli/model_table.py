"""The table of `transfiner models`: what each model knows, its size, AP and milliseconds, from the models' cards."""

from __future__ import annotations

from pathlib import Path

from backend.versions.store import stored_models
from model.checkpoints.releases import RELEASES

CARD_FILE = "MODEL_CARD.md"
#: Columns of the card's table, the first of which finds it.
CARD_COLUMNS = ("knows", "AP", "milliseconds")
COLUMNS = ("model", "here", "knows", "MB", "AP", "milliseconds")
UNKNOWN = "-"


def card_facts(directory: Path) -> dict[str, str]:
    """The row under the header `| knows | AP | milliseconds |` of a checkpoint's card; {} where there is none."""
    card = directory / CARD_FILE
    rows = [_cells(line) for line in card.read_text(encoding="utf-8").splitlines()] if card.is_file() else []
    for number, row in enumerate(rows[:-2]):
        if row == list(CARD_COLUMNS):
            return dict(zip(CARD_COLUMNS, rows[number + 2], strict=True))
    return {}


def model_table(store: Path) -> list[dict[str, str]]:
    """A row a model, those on this machine first, then those that `transfiner models fetch` downloads."""
    rows = []
    for stored in stored_models(store):
        facts = stored.as_dict()
        knows = {"knows": _counted(facts["classes"]), "AP": UNKNOWN, "milliseconds": UNKNOWN}
        size = {"MB": f"{facts['bytes'] / 1e6:.1f}" if facts["bytes"] else UNKNOWN}
        rows.append({"model": facts["name"], "here": "yes", **knows, **size, **card_facts(stored.directory)})
    known = {row["model"] for row in rows}
    for release in RELEASES.values():
        if release.name not in known:
            facts = {"knows": release.knows, "MB": UNKNOWN, "AP": release.figures, "milliseconds": UNKNOWN}
            rows.append({"model": release.name, "here": "fetch", **facts})
    return rows


def table_text(rows: list[dict[str, str]]) -> str:
    """The rows below each other, each column as wide as its longest cell."""
    cells = [list(COLUMNS), *([row[column] for column in COLUMNS] for row in rows)]
    widths = [max(len(row[number]) for row in cells) for number in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _counted(classes: list[str]) -> str:
    shown = ", ".join(classes[:4])
    return shown if len(classes) <= 4 else f"{shown} and {len(classes) - 4} more"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
