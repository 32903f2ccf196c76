"""`transfiner data`: look at data sets, mend them, prepare the official ones."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from backend.cli.types import CHECKPOINT, SuggestingGroup


@click.group(cls=SuggestingGroup)
def data() -> None:
    """Check data sets, mend them, prepare the official ones.

    \b
    Example: transfiner data check coco:instances_val2017.json:val2017/
    """


@data.command()
@click.argument("name", metavar="SET")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Images to read, evenly spread; 0: all. Annotation files are always checked whole.",
)
@click.option(
    "--sheet", type=click.Path(dir_okay=False, path_type=Path), help="Contact sheet, a PNG; --fix writes one too."
)
@click.option("--pictures", type=click.IntRange(1), default=12, show_default=True, help="Images on the sheet.")
@click.option(
    "--bad",
    type=click.Choice(["skip", "fatal"]),
    default="skip",
    show_default=True,
    help="Stop at the first annotation or file that cannot be right, or skip and count.",
)
@click.option(
    "--fix",
    type=click.Path(file_okay=False, path_type=Path),
    help="New folder for a repaired copy in COCO's format: annotations.json, images/ and a contact sheet, sheet.png.",
)
@click.option(
    "--weights",
    type=CHECKPOINT,
    help="Checkpoint that knows these classes: labels it disagrees with are named, the surest first; "
    "with --sheet also drawn, beside the sheet as NAME-doubts.png.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def check(
    name: str,
    limit: int,
    sheet: Path | None,
    pictures: int,
    bad: str,
    fix: Path | None,
    weights: Path | None,
    as_json: bool,
) -> None:
    """Read a set: what it holds, what is wrong with it, and a contact sheet. The first thing to run on any set.

    Ends with 1 where an image, an object or a part of one is left out, or where there is no object at all. Labels that
    look careless (duplicates of an object, slivers, boxes drawn as polygons) are named and change nothing.

    SET is scenes:SPLIT:COUNT, coco:ANNOTATIONS.json:IMAGES/, lvis:ANNOTATIONS.json:IMAGES/, cityscapes:ROOT:SPLIT,
    bdd100k:ROOT:SPLIT, via:FOLDER[:LABEL] or label-studio:EXPORT.json:IMAGES/[:CONFIG.xml], an export as JSON or
    JSON-MIN, read as a snapshot of it would be.

    \b
    Example: transfiner data check cityscapes:data/cityscapes:val --sheet sheet.png
    """
    from training.datasets import SceneSet, open_set
    from training.datasets.repair import write_repaired
    from training.datasets.statistics import save_contact_sheet, spread, statistics

    policy: Any = bad
    try:
        samples = _open_export(name) if name.startswith("label-studio:") else open_set(name, bad=policy, missing=policy)
        if fix and name.startswith("label-studio:"):
            raise ValueError("--fix repairs data sets on disk; transfiner export writes one of a Label Studio export")
        if fix and isinstance(samples, SceneSet):
            raise ValueError(f"--fix repairs sets on disk, and {name} is generated; give any other kind of set")
        indices = spread(len(samples), limit)
        with click.progressbar(length=len(indices), label=f"reading {name}", file=sys.stderr) as bar:
            outcome = {"set": name} | statistics(samples, indices, lambda _: bar.update(1))
        if fix and not isinstance(samples, SceneSet):
            outcome["repaired_copy"] = {"set": f"coco:{fix / 'annotations.json'}:{fix / 'images'}"}
            outcome["repaired_copy"] |= write_repaired(samples, fix)
            sheet = sheet or fix / "sheet.png"
        if sheet:
            save_contact_sheet(samples, spread(len(samples), pictures), sheet)
            outcome["sheet"] = str(sheet)
        if weights:
            file = sheet.with_name(f"{sheet.stem}-doubts.png") if sheet else None
            outcome["doubts"] = _doubts(samples, indices, weights, file)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(outcome) if as_json else _summary(outcome))
    sys.exit(1 if outcome["lost"] or not outcome["objects"] else 0)


def _open_export(name: str) -> Any:
    """Samples of a Label Studio export, with a problem for all that a snapshot of it would leave out.

    Raises:
        ServiceError, UnsupportedConfigError: the export cannot be read, or nothing in it can be learned from.
    """
    from backend.cli.train.snapshot import read_rows
    from backend.learning.snapshot import Labelling, SnapshotSettings, freeze_tasks
    from backend.learning.task_images import ImageFolder
    from training.snapshots.samples import SnapshotSamples

    export_file, _, rest = name.partition(":")[2].partition(":")
    images, _, config_file = rest.rpartition(":") if rest.endswith(".xml") else (rest, "", "")
    if not (export_file and images):
        raise ValueError(f"the set is {name!r}, expected label-studio:EXPORT.json:IMAGES/[:CONFIG.xml]")
    rows = read_rows(Path(export_file))
    labelling = Labelling.of_config(Path(config_file).read_text("utf-8")) if config_file else Labelling.of_rows(rows)
    folder = tempfile.TemporaryDirectory(prefix="transfiner-check-")
    click.get_current_context().call_on_close(folder.cleanup)
    settings = SnapshotSettings(holdout_share=0)
    path = freeze_tasks(rows, labelling, ImageFolder(Path(images)).fetch, Path(folder.name), settings=settings)
    samples = SnapshotSamples(path)
    for entry in json.loads((path / "corrections.json").read_text("utf-8"))["left_out"]:
        place = f"task {entry['task']}, annotation {entry['annotation']}, region {entry['region'] or '-'}"
        samples.problems.note(export_file, place, "left out", entry["reason"])
    return samples


def _doubts(samples: Any, indices: list[int], weights: Path, file: Path | None) -> list[str]:
    """Labels that a checkpoint disagrees with, the surest first; the first of them are drawn into a file."""
    from model.predictor import Predictor
    from training.evaluation.swapped_classes import doubted_labels, save_doubts

    predictor = Predictor.from_checkpoint(weights)
    if not set(predictor.labels) & set(samples.class_names):
        known, given = (", ".join(names) for names in (predictor.labels, samples.class_names))
        raise ValueError(
            f"the checkpoint knows {known}, the set has {given}; give one that was trained on these classes"
        )
    with click.progressbar(length=len(indices), label="comparing with the model", file=sys.stderr) as bar:
        doubts = doubted_labels(samples, indices, predictor, lambda _: bar.update(1))
    if file:
        save_doubts(doubts[:_MOST_SHOWN], file)
    return [str(doubt) for doubt in doubts]


_MOST_SHOWN = 20  # problems; --json has them all


def _summary(outcome: dict[str, Any]) -> str:
    sizes = " x ".join("-".join(map(str, sorted(set(outcome[side])))) for side in ("width_px", "height_px"))
    by_size = ", ".join(f"{count} {name}" for name, count in outcome["by_size"].items())
    lines = [
        f"{outcome['set']}: {outcome['images']} images, {outcome['images_read']} read, {sizes} px",
        f"  {outcome['objects']} objects ({by_size}), {outcome['crowds']} crowds, "
        f"{outcome['images_without_objects']} images without objects",
        f"  contact sheet: {outcome.get('sheet', 'none; give --sheet FILE.png to see the labels drawn')}",
    ]
    if not outcome["objects"]:
        lines.append("  not one object: nothing can be learned from this set")
    counted = sorted(outcome["by_class"].items(), key=lambda item: -item[1])
    lines += [f"  {name:<24}{count:>7}" for name, count in counted if count]
    empty = sum(not count for _, count in counted)
    lines += [f"  {empty} of {len(counted)} classes do not occur"] if empty else []
    lines += [f"  {count} x {kind}" for kind, count in outcome["problems"].items()] or ["  nothing wrong"]
    lines += [f"    {problem}" for problem in outcome["problem_list"][:_MOST_SHOWN]]
    lines += [f"  look at {count} x {kind}" for kind, count in outcome["careless"].items()]
    lines += [f"    {label}" for label in outcome["careless_list"][:_MOST_SHOWN]]
    lines += [f"  the model doubts {len(outcome['doubts'])} labels"] if "doubts" in outcome else []
    lines += [f"    {doubt}" for doubt in outcome.get("doubts", [])[:_MOST_SHOWN]]
    if copy := outcome.get("repaired_copy"):
        lines.append(f"  repaired copy: {copy['set']}, {copy['images']} images, {copy['annotations']} annotations")
    return "\n".join(lines)


@data.command()
@click.argument("layout", type=click.Choice(["coco", "lvis-cocofied", "cityscapes", "bdd100k"]))
@click.argument("root", type=click.Path(file_okay=False, path_type=Path))
@click.option("--any-size", is_flag=True, help="Accept other counts than the official set's (subsets).")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def prepare(layout: str, root: Path, any_size: bool, as_json: bool) -> None:
    """Check that an official set is whole, convert what must be converted, say what to download where.

    \b
    Example: transfiner data prepare lvis-cocofied data/coco
    """
    from training.datasets.preparation import convert, digests, inspect, set_names

    findings = inspect(layout, root, any_size=any_size)
    whole = all(finding.fine for finding in findings)
    try:
        known = digests(layout, root) if whole else {}
        written = [str(path) for path in convert(layout, root)] if whole else []
    except (ValueError, KeyError, OSError) as error:
        raise click.ClickException(str(error)) from error
    names = set_names(layout, root) if whole else []
    outcome = {
        "layout": layout,
        "root": str(root),
        "whole": whole,
        "parts": [finding.as_dict() for finding in findings],
        "digests": known,
        "written": written,
        "sets": names,
    }
    if as_json:
        click.echo(json.dumps(outcome))
    else:
        for item in findings:
            click.echo(
                f"{'ok     ' if item.fine else 'MISSING'} {root / item.part.pattern}: {item.problem or item.files}"
            )
            if not item.fine:
                click.echo(f"        get {item.part.source.replace('ROOT', str(root))}")
        for line in [*(f"wrote   {path}" for path in written), *(f"use     {name}" for name in names)]:
            click.echo(line)
    sys.exit(0 if whole else 1)
