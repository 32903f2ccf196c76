"""`transfiner scenes`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--split", type=click.Choice(["train", "val", "demo"]), default="demo", show_default=True)
@click.option("--count", type=click.IntRange(1), default=12, show_default=True)
@click.option(
    "--first", type=click.IntRange(0), default=0, show_default=True, help="Index of the first scene."
)
@click.option("--width", type=click.IntRange(64), default=384, show_default=True, help="Pixels.")
@click.option("--height", type=click.IntRange(64), default=288, show_default=True, help="Pixels.")
@click.option("--out", "folder", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option(
    "--sheet", type=click.Path(dir_okay=False, path_type=Path), help="Also write a contact sheet, a PNG."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def scenes(
    split: str,
    count: int,
    first: int,
    width: int,
    height: int,
    folder: Path,
    sheet: Path | None,
    as_json: bool,
) -> None:
    """Draw scenes with exact masks: images and a COCO annotation file.

    \b
    Example: transfiner scenes --split demo --count 12 --out scenes/ --sheet scenes/sheet.png
    """
    from training.scene_files import write_scenes

    written = write_scenes(
        folder, split, range(first, first + count), width=width, height=height, sheet=sheet
    )
    outcome = {
        "images": len(written.images),
        "instances": written.instances,
        "annotations": str(written.annotations),
    }
    click.echo(
        json.dumps(outcome)
        if as_json
        else f"{outcome['images']} scenes with {outcome['instances']} objects in {folder}"
    )
