"""`transfiner data`: look at data sets, mend them, prepare the official ones."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from backend.cli.types import FILE, FOLDER, SuggestingGroup, json_option, plain_errors, weights_option


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
    help="Images to read, evenly spread, where all take too long; annotation files are always checked whole. "
    "Generated scenes: 200 by default.",
)
@click.option(
    "--sheet", type=FILE, help="Contact sheet, a PNG; data-check.png by default, with --fix sheet.png in its folder."
)
@click.option("--pictures", type=click.IntRange(1), default=12, help="Images on the sheet.")
@click.option(
    "--fix",
    type=FOLDER,
    help="New folder for a repaired copy in COCO's format: annotations.json, images/ and a contact sheet, sheet.png.",
)
@weights_option(
    "Checkpoint that knows these classes: labels it disagrees with are named, the surest first, and drawn beside the "
    "sheet as NAME-doubts.png."
)
@json_option
def check(
    name: str,
    limit: int | None,
    sheet: Path | None,
    pictures: int,
    fix: Path | None,
    weights: Path | None,
    as_json: bool,
) -> None:
    """Read a set: what it holds, what is wrong with it, and a contact sheet. The first thing to run on any set.

    Ends with 1 where an image, an object or a part of one is left out, or where there is no object at all. Labels that
    look careless (duplicates of an object, slivers, boxes drawn as polygons) are named, drawn beside the sheet as
    NAME-careless.png, and change nothing.

    SET is scenes:SPLIT:COUNT, coco:ANNOTATIONS.json:IMAGES/, lvis:ANNOTATIONS.json:IMAGES/, cityscapes:ROOT:SPLIT,
    bdd100k:ROOT:SPLIT, via:FOLDER[:LABEL] or label-studio:EXPORT.json:IMAGES/[:CONFIG.xml], an export as JSON or
    JSON-MIN, read as a snapshot of it would be.

    \b
    Example: transfiner data check cityscapes:data/cityscapes:val --sheet sheet.png
    """
    from training.datasets import open_set

    with plain_errors():
        samples = _open_export(name) if name.startswith("label-studio:") else open_set(name, missing="skip")
        # Steps that may fail early come first: the others take long.
        outcome = {"set": name} | (_write_copy(samples, name, fix) if fix else {})
        sheet = sheet or (fix / "sheet.png" if fix else Path("data-check.png"))
        outcome |= _read_set(samples, name, limit, pictures, sheet)
        if weights:
            outcome["doubts_sheet"] = str(sheet.with_name(f"{sheet.stem}-doubts.png"))
            outcome["doubts"] = _doubts(
                samples, _indices_to_read(samples, limit), weights, Path(outcome["doubts_sheet"])
            )
    text = json.dumps(outcome) if as_json else _summary(outcome)
    click.echo(text.encode("utf-8", "backslashreplace").decode())  # names may hold what no terminal shows
    sys.exit(1 if outcome["lost"] or not outcome["objects"] else 0)


def _indices_to_read(samples: Any, limit: int | None) -> list[int]:
    """Indices of the images to read: `limit` of them, else all of a set on disk, or 200 generated ones."""
    from training.datasets import SceneSet
    from training.datasets.check import spread

    image_count = limit if limit is not None else 200 if isinstance(samples, SceneSet) else 0
    return spread(len(samples), image_count)


def _write_copy(samples: Any, name: str, folder: Path) -> dict[str, Any]:
    """Write a repaired copy of a set; returns its name and counts."""
    from training.datasets import SceneSet
    from training.datasets.repair import write_repaired
    from training.finetune.plan import SnapshotSamples

    if isinstance(samples, SceneSet):
        raise ValueError(f"--fix repairs sets on disk, and {name} is generated; give any other kind of set")
    source = samples.snapshot.open_set("train") if isinstance(samples, SnapshotSamples) else samples
    copy = f"coco:{folder / 'annotations.json'}:{folder / 'images'}"
    return {"repaired_copy": {"set": copy, **write_repaired(source, folder)}}


def _read_set(samples: Any, name: str, limit: int | None, pictures: int, sheet: Path) -> dict[str, Any]:
    """Draw the contact sheet and read the set: counts, problems, and careless labels with their pictures."""
    from training.datasets.check import data_set_contact_sheet, save_pictures, spread, statistics
    from training.datasets.pictures import save_picture

    save_picture(data_set_contact_sheet(samples, spread(len(samples), pictures)), sheet)
    indices, careless = _indices_to_read(samples, limit), list[tuple[Any, str, str]]()
    with click.progressbar(length=len(indices), label=f"reading {name}", file=sys.stderr) as bar:
        counts = statistics(
            samples,
            indices,
            lambda _: bar.update(1),
            lambda problem, picture: careless.append((picture, problem.kind, problem.record)),
        )
    sheets = {"sheet": str(sheet)}
    if careless:
        file = sheet.with_name(f"{sheet.stem}-careless.png")
        save_pictures(careless, file)
        sheets["careless_sheet"] = str(file)
    return sheets | counts


def _open_export(name: str) -> Any:
    """Samples of a Label Studio export, with a problem for all that a snapshot of it would leave out.

    Raises:
        ServiceError, UnsupportedConfigError: the export cannot be read, or nothing in it can be learned from.
    """
    from backend.cli.train.snapshot import read_labelling, read_rows
    from backend.learning.snapshot import ImageFolder, SnapshotSettings, freeze_tasks
    from training.datasets import split_after_file
    from training.finetune.plan import SnapshotSamples

    export_file, _, paths = split_after_file(name.partition(":")[2])
    images, config_file = _images_and_config(paths)
    if not (export_file and images):
        raise ValueError(f"the set is {name!r}, expected label-studio:EXPORT.json:IMAGES/[:CONFIG.xml]")
    rows = read_rows(Path(export_file))
    labelling = read_labelling(Path(config_file) if config_file else None, rows)
    folder = tempfile.TemporaryDirectory(prefix="transfiner-check-")
    click.get_current_context().call_on_close(folder.cleanup)
    settings = SnapshotSettings(holdout_share=0)
    path = freeze_tasks(rows, labelling, ImageFolder(Path(images)).fetch, Path(folder.name), settings=settings)
    samples = SnapshotSamples(path)
    for omission in json.loads((path / "corrections.json").read_text("utf-8"))["left_out"]:
        # Tasks without an id have a negative one: their place in the file.
        task = f"task {omission['task']}" if omission["task"] > 0 else f"entry {-omission['task'] - 1}"
        place = f"{task}, annotation {omission['annotation']}, region {omission['region'] or '-'}"
        kind = "left out" if omission["lost"] else "nothing lost"
        samples.problems.note(export_file, place, kind, omission["reason"], repaired=not omission["lost"])
    return samples


def _images_and_config(paths: str) -> tuple[str, str]:
    """The folder and the label config in ``IMAGES/[:CONFIG.xml]``; either may have colons in its name."""
    places = [place for place, letter in enumerate(paths) if letter == ":"] if paths.endswith(".xml") else []
    pairs = [(paths[:place], paths[place + 1 :]) for place in places]
    existing_pairs = [pair for pair in pairs if Path(pair[0]).is_dir() and Path(pair[1]).is_file()]
    return (existing_pairs or pairs[-1:] or [(paths, "")])[0]


def _doubts(samples: Any, indices: list[int], weights: Path, file: Path) -> list[str]:
    """Labels that a checkpoint disagrees with, the surest first; the first of them are drawn into a file."""
    from model.inference.predictor import Predictor
    from training.datasets.check import doubted_labels, save_pictures

    predictor = Predictor.from_checkpoint(weights)
    if not set(predictor.labels) & set(samples.class_names):
        model_labels, set_labels = (", ".join(names) for names in (predictor.labels, samples.class_names))
        raise ValueError(
            f"the checkpoint knows {model_labels}, the set has {set_labels}; give one that was trained on these classes"
        )
    with click.progressbar(length=len(indices), label="comparing with the model", file=sys.stderr) as bar:
        doubts = doubted_labels(samples, indices, predictor, lambda _: bar.update(1))
    save_pictures([doubt.captioned() for doubt in doubts[:_MOST_SHOWN]], file)
    return [str(doubt) for doubt in doubts]


_MOST_SHOWN = 20  # of a list of problems


def _short_list(entries: list[str]) -> list[str]:
    count_line = [f"    and {len(entries) - _MOST_SHOWN} more: --json has all"] if len(entries) > _MOST_SHOWN else []
    return [f"    {entry}" for entry in entries[:_MOST_SHOWN]] + count_line


def _summary(outcome: dict[str, Any]) -> str:
    sizes = " x ".join("-".join(map(str, sorted(set(outcome[side])))) for side in ("width_px", "height_px"))
    by_size = ", ".join(f"{count} {name}" for name, count in outcome["by_size"].items())
    lines = [
        f"{outcome['set']}: {outcome['images']} images, {outcome['images_read']} read, {sizes} px",
        f"  {outcome['objects']} objects ({by_size}), {outcome['crowds']} crowds, "
        f"{outcome['images_without_objects']} images without objects",
        f"  contact sheet: {outcome['sheet']}",
    ]
    if unread_count := outcome["images"] - outcome["images_read"] - outcome["images_left_out"]:
        lines.append(f"  {unread_count} pictures were not looked at, because of --limit")
    if not outcome["objects"]:
        lines.append("  not one object: nothing can be learned from this set")
    class_counts = sorted(outcome["by_class"].items(), key=lambda item: -item[1])
    lines += [f"  {name:<24}{count:>7}" for name, count in class_counts if count]
    empty_count = sum(not count for _, count in class_counts)
    lines += [f"  {empty_count} of {len(class_counts)} classes do not occur"] if empty_count else []
    lines += [f"  {count} x {kind}" for kind, count in outcome["problems"].items()] or ["  nothing wrong"]
    lines += _short_list(outcome["problem_list"])
    lines += [f"  look at {count} x {kind}" for kind, count in outcome["careless"].items()]
    lines += _short_list(outcome["careless_list"])
    lines += [f"  pictures of these: {outcome['careless_sheet']}"] if "careless_sheet" in outcome else []
    if "doubts" in outcome:
        lines.append(f"  the model doubts {len(outcome['doubts'])} labels; pictures: {outcome['doubts_sheet']}")
    lines += _short_list(outcome.get("doubts", []))
    if copy := outcome.get("repaired_copy"):
        lines.append(f"  repaired copy: {copy['set']}, {copy['images']} images, {copy['annotations']} annotations")
    return "\n".join(lines)


@data.command()
@click.argument("layout", type=click.Choice(["coco", "lvis-cocofied", "cityscapes", "bdd100k"]))
@click.argument("root", type=FOLDER)
@click.option("--any-size", is_flag=True, help="Accept other counts than the official set's (subsets).")
@json_option
def prepare(layout: str, root: Path, any_size: bool, as_json: bool) -> None:
    """Check that an official set is whole, convert what must be converted, say what to download where.

    \b
    Example: transfiner data prepare lvis-cocofied data/coco
    """
    from training.datasets.preparation import convert, inspect, set_names

    findings = inspect(layout, root, any_size=any_size)
    is_whole = all(finding.fine for finding in findings)
    with plain_errors(KeyError):
        paths = [str(path) for path in convert(layout, root)] if is_whole else []
    names = set_names(layout, root) if is_whole else []
    outcome = {
        "layout": layout,
        "root": str(root),
        "whole": is_whole,
        "parts": [finding.as_dict() for finding in findings],
        "written": paths,
        "sets": names,
    }
    if as_json:
        click.echo(json.dumps(outcome))
    else:
        for finding in findings:
            state = "ok     " if finding.fine else "MISSING"
            click.echo(f"{state} {root / finding.part.pattern}: {finding.problem or finding.files}")
            if not finding.fine:
                click.echo(f"        get {finding.part.source.replace('ROOT', str(root))}")
        for line in [*(f"wrote   {path}" for path in paths), *(f"use     {name}" for name in names)]:
            click.echo(line)
    sys.exit(0 if is_whole else 1)
