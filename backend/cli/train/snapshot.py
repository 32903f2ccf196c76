"""`transfiner snapshot`: annotations frozen as a data set, from a live Label Studio or from an exported file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.cli.types import EXISTING_FILE, FOLDER, annotation_options, progress_bar, read_label_config_file
from backend.errors import ServiceError, StartError

if TYPE_CHECKING:
    from backend.learning.snapshot import Labelling
    from integration.label_studio.client import LabelStudioClient

Json = dict[str, Any]
HINT = "Export as JSON in Label Studio."


@click.command()
@click.option("--project", help="Id of the project in Label Studio; with --export any name.")
@annotation_options
@click.option("--images", type=FOLDER, help="Folder of its images.")
@click.option(
    "--predictions",
    "predictions_file",
    type=EXISTING_FILE,
    help="Answer of /api/predictions, for exports that hold ids only.",
)
@click.option("--out", type=FOLDER, default=Path("snapshots"))
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    help="Share of images that are never trained on.",
)
def snapshot(
    project: str | None,
    url: str | None,
    api_key: str | None,
    export_file: Path | None,
    images: Path | None,
    config_file: Path | None,
    predictions_file: Path | None,
    out: Path,
    annotators: Any,
    holdout: float,
    as_json: bool,
) -> None:
    """Freeze annotations as a data set, and report what people corrected.

    \b
    Example: transfiner snapshot --project 12 --url http://127.0.0.1:8080 --out snapshots
    Example: transfiner snapshot --export export.json --images photos --out snapshots
    """
    from backend.learning.snapshot import ImageFolder, SnapshotSettings, freeze_tasks, take_snapshot
    from backend.settings import load_settings
    from backend.worker.images import fetch_settings
    from integration.images.fetch import ImageFetcher
    from integration.label_studio.client import ClientError

    settings = SnapshotSettings(choice=annotators, holdout_share=holdout)
    if export_file is not None and images is None:
        raise click.UsageError("--export needs --images, the folder with the images of its tasks")
    if export_file is None and not (project or "").isdecimal():
        raise click.UsageError(f"--project is {project!r}, expected the number of a project, or --export FILE")
    with progress_bar("images") as progress:
        if export_file is not None and images is not None:
            rows = read_rows(export_file)
            labelling = read_labelling(config_file, rows)
            prediction_rows = _objects_of(predictions_file) if predictions_file else []
            by_id = {int(row["id"]): row for row in prediction_rows if str(row.get("id")).isdecimal()}
            options: Json = {"predictions": by_id, "settings": settings, "progress": progress}
            path = freeze_tasks(rows, labelling, ImageFolder(images).fetch, out, project or "", **options)
        else:
            client = label_studio_client(url, api_key)
            fetcher = ImageFetcher(fetch_settings(load_settings(), client.base_url), auth=client.auth)
            try:
                path = take_snapshot(
                    client, int(project or 0), fetcher.fetch_bytes, out, settings=settings, progress=progress
                )
            except ClientError as error:
                raise ServiceError(str(error)) from error
    click.echo(json.dumps(_facts(path), ensure_ascii=False) if as_json else _page(path))


def read_labelling(config_file: Path | None, rows: Sequence[Mapping[str, Any]], xml: str = "") -> Labelling:
    """Read the labels: of a label config in a file, else of `xml`, else those that occur in the tasks."""
    from backend.learning.snapshot import Labelling

    xml = read_label_config_file(config_file) if config_file else xml
    return Labelling.of_config(xml) if xml else Labelling.of_rows(rows)


def label_studio_client(url: str | None, api_key: str | None) -> LabelStudioClient:
    """A client for the Label Studio of the options, the settings or a service that runs here.

    Raises:
        StartError: none of them names one.
    """
    from backend.processes.running_service import load_settings_of_running
    from integration.label_studio.client import LabelStudioClient

    settings = load_settings_of_running(label_studio_url=url, label_studio_api_key=api_key)
    if not settings.label_studio_url:
        fix = "Give --url, set LABEL_STUDIO_URL or start a demo or service; or use --export."
        raise StartError("No address of Label Studio.", fix)
    key = settings.label_studio_api_key.get_secret_value()
    return LabelStudioClient(settings.label_studio_url, key, timeout_s=max(60.0, settings.label_studio_timeout_s))


#: Keys that only a task of the whole export has, and that only a row of JSON-MIN has.
_OF_TASKS, _OF_JSON_MIN = {"data", "annotations", "completions"}, {"annotation_id", "annotator"}


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """Read the tasks of an exported JSON or JSON-MIN file; those without a number as id get negative ones.

    A single task, and an answer of the API (`{"tasks": [...]}`), are read as well.

    Raises:
        ServiceError: the file is no such export.
    """
    from integration.label_studio.tasks import rows_of_json_min

    rows = _objects_of(path)
    flat_rows = [row for row in rows if not row.keys() & _OF_TASKS and row.keys() & _OF_JSON_MIN]
    for index, row in enumerate(rows):
        if not row.keys() & (_OF_TASKS | _OF_JSON_MIN):
            raise ServiceError(f"{path}: entry {index} is {row!r:.60}, expected a task with data.", HINT)
    if flat_rows:
        share = f" {len(flat_rows)} of {len(rows)} entries are." if len(flat_rows) < len(rows) else ""
        click.echo(
            f"Note: {path} is a JSON-MIN export:{share} each part of an object counts as an object, and what was "
            "corrected is not known. Export as JSON where that matters.",
            err=True,
        )
        rows = [row for row in rows if row.keys() & _OF_TASKS] + rows_of_json_min(flat_rows)
    has_number = [str(row.get("id")).isdecimal() for row in rows]
    return [
        row if is_numbered else {**row, "id": -n}
        for n, (row, is_numbered) in enumerate(zip(rows, has_number, strict=True), start=1)
    ]


def _objects_of(path: Path) -> list[Mapping[str, Any]]:
    """Read the objects in a JSON file: those of its list or its `tasks`, or the file itself where it is a task."""
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"{path} is not JSON: {error}.", HINT) from error
    if isinstance(entries, dict):
        if {"images", "categories"} <= entries.keys():
            raise ServiceError(f"{path} is a COCO file, expected a list of tasks.", f"Name it coco:{path}:IMAGES/.")
        entries = entries.get("tasks", [entries] if entries.keys() & _OF_TASKS else entries)
    if not isinstance(entries, list):
        keys = f" with the keys {', '.join(map(str, entries))}" if isinstance(entries, dict) and entries else ""
        raise ServiceError(f"{path} holds a {type(entries).__name__}{keys:.200}, expected a list of tasks.", HINT)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ServiceError(f"{path}: entry {index} is {entry!r:.60}, expected an object.", HINT)
    return entries


def _facts(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    report = json.loads((path / "corrections.json").read_text(encoding="utf-8"))
    return {"path": str(path), **manifest, **{name: report[name] for name in ("totals", "labels", "left_out")}}


def _page(path: Path) -> str:
    counts = _facts(path)["counts"]
    where = f"{path}: {counts['train_images']} images to train on, {counts['holdout_images']} held out"
    return f"{(path / 'report.md').read_text(encoding='utf-8')}\n{where}"
