"""`transfiner predict`: outline the objects of image files with any checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from backend.model_store import DEFAULT_STORE, find_model
from integration.image_decoding import decode_image
from model.requirements import MissingRequirementError, require_model_libraries

if TYPE_CHECKING:
    from backend.prediction_writers import PredictionWriter
    from model.predictor import Predictor

# Files of one's own may be larger than what a server accepts from strangers.
MAX_PIXELS = 250_000_000
FilePath = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="scenes-small", show_default=True, help="Checkpoint directory or name.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(("coco", "label-studio", "overlay")),
    default="coco",
    show_default=True,
    help="COCO results, Label Studio tasks, or pictures with the objects drawn on.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file, or folder of the pictures.")
@click.option("--label-config", "config_file", type=FilePath, help="Labeling config, for label-studio.")
@click.option("--score-threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True)
@click.option("--tolerance-px", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--store", type=click.Path(path_type=Path), default=DEFAULT_STORE, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For overlay: print the written files as JSON.")
def predict(
    images: tuple[Path, ...],
    model: str,
    kind: str,
    output: Path | None,
    config_file: Path | None,
    score_threshold: float,
    tolerance_px: float,
    device: str,
    store: Path,
    as_json: bool,
) -> None:
    """Outline objects in images: COCO results, Label Studio tasks or pictures.

    JSON goes to standard output unless --output names a file. Pictures go to the folder of --output (`overlays`).
    Images that cannot be read are reported, the others go on, and the exit code is 1.

    \b
    Example: transfiner predict photos/*.jpg --format overlay --output outlined
    """
    try:
        require_model_libraries()
        from model.predictor import Predictor

        directory = find_model(model, store)
        predictor = Predictor.from_checkpoint(directory, device=device, score_threshold=score_threshold)
        writer = _writer(kind, predictor, output, config_file, tolerance_px)
        failures = _predict_all(predictor, images, writer)
        _print(writer.records, kind, output, as_json)
    except (MissingRequirementError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for message in failures:
        click.echo(f"Error: {message}", err=True)
    if failures:
        sys.exit(1)


def _writer(
    kind: str, predictor: Predictor, output: Path | None, config_file: Path | None, tolerance_px: float
) -> PredictionWriter:
    from backend.prediction_writers import CocoWriter, LabelStudioWriter, OverlayWriter, read_label_config

    if kind == "coco":
        return CocoWriter(predictor.labels)
    if kind == "overlay":
        return OverlayWriter(output or Path("overlays"))
    return LabelStudioWriter(
        read_label_config(config_file, predictor.labels), predictor.version, tolerance_px
    )


def _predict_all(predictor: Predictor, files: Sequence[Path], writer: PredictionWriter) -> list[str]:
    """Feed every readable image to the writer; the messages of the others."""
    from backend.prediction_writers import OutlinedImage

    failures: list[str] = []
    with _progress_bar(len(files)) as advance:
        for start in range(0, len(files), predictor.images_at_once):
            batch: list[tuple[int, np.ndarray]] = []
            for number in range(start, min(start + predictor.images_at_once, len(files))):
                try:
                    batch.append((number, _read(files[number])))
                except (ValueError, OSError) as error:
                    failures.append(str(error))
            results = predictor([image for _, image in batch])
            for (number, image), instances in zip(batch, results, strict=True):
                writer.add(OutlinedImage(files[number], number, image, instances))
            advance(predictor.images_at_once)
    return failures


def _read(file: Path) -> np.ndarray:
    return decode_image(file.read_bytes(), name=str(file), max_pixels=MAX_PIXELS)


def _print(records: list[Any], kind: str, output: Path | None, as_json: bool) -> None:
    if kind == "overlay":
        click.echo(json.dumps(records) if as_json else "\n".join(records))
    elif output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(records) + "\n", encoding="utf-8")
        click.echo(f"{output}: {len(records)} records", err=True)
    else:
        click.echo(json.dumps(records))


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal's error stream, so that standard output is JSON alone."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=total)
        yield lambda count: bar.update(task, advance=count)
