"""`transfiner visualize`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from backend.cli.types import CHECKPOINT, DEVICE

_FIGURES = ("depths", "regions", "attention")


@click.command()
@click.argument("images", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", type=CHECKPOINT, required=True, help="Checkpoint directory or name.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("output/visualize"),
    show_default=True,
    help="Folder of the pictures.",
)
@click.option("--figure", "figures", type=click.Choice(_FIGURES), multiple=True, help="Only this one; repeatable.")
@click.option("--instances", type=click.IntRange(1), default=4, show_default=True, help="Best-scored ones of an image.")
@click.option(
    "--failures",
    "failures_of",
    default=None,
    metavar="SET",
    help="Also draw the worst outlines of a set: scenes:val:50 or coco:FILE:FOLDER/.",
)
@click.option("--count", type=click.IntRange(1), default=8, show_default=True, help="How many of the worst.")
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the written files as JSON.")
def visualize(
    images: tuple[Path, ...],
    weights: Path,
    out: Path,
    figures: tuple[str, ...],
    instances: int,
    failures_of: str | None,
    count: int,
    device: str,
    as_json: bool,
) -> None:
    """Draw how masks are refined: by depth, incoherent regions, attention of nodes, worst outlines.

    \b
    Example: transfiner visualize photo.jpg --weights model/weights/scenes-small --failures scenes:val:50
    """
    if not images and not failures_of:
        raise click.UsageError("give images to draw, or --failures SET")
    out.mkdir(parents=True, exist_ok=True)
    written = _draw_images(images, weights, out, figures or _FIGURES, instances, device) if images else []
    if failures_of:
        written.append(_draw_failures(failures_of, weights, out, count, device))
    files = [str(path) for path in written]
    click.echo(json.dumps({"files": files}) if as_json else "\n".join(files))


def _draw_failures(name: str, weights: Path, out: Path, count: int, device: str) -> Path:
    """Draw the worst detections of the model as it is served.

    Whole sequences, which the other figures need, take minutes an image and change masks.
    """
    from model.checkpoints.metadata import read_metadata
    from training.benchmark.cost.subjects import open_network
    from training.datasets import open_set
    from training.visualization import plots as drawing
    from training.visualization.failures import find_failures

    try:
        samples = open_set(name)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if list(samples.class_names) != list(read_metadata(weights)["classes"]):
        raise click.ClickException(f"{weights} knows other classes than {name}: {', '.join(samples.class_names)}")
    network, cfg = open_network(weights=weights, device=device)
    with click.progressbar(length=len(samples), label="looking for failures", file=sys.stderr) as bar:
        cases = find_failures(network, cfg, samples, count=count, progress=lambda _: bar.update(1))
    if not cases:
        raise click.ClickException(f"no detection on {name} matches a truth: there is nothing to compare")
    return _save(drawing.draw_failures(cases), out / "failures.png")


def _draw_images(
    images: tuple[Path, ...], weights: Path, out: Path, figures: tuple[str, ...], instances: int, device: str
) -> list[Path]:
    from model.checkpoints.checkpoint import load_checkpoint
    from model.images import read_image
    from training.benchmark.cost.subjects import open_network
    from training.visualization import plots as drawing
    from training.visualization.observation import WHOLE_SEQUENCES, observe

    draw = {"depths": drawing.draw_depths, "regions": drawing.draw_regions, "attention": drawing.draw_attention}
    names = load_checkpoint(weights).metadata["classes"]
    network, cfg = open_network(weights=weights, device=device, overrides=[str(part) for part in WHOLE_SEQUENCES])
    written: list[Path] = []
    for path in images:
        try:
            seen = observe(network, cfg, read_image(path))
        except (ValueError, OSError) as error:
            raise click.ClickException(f"{path}: {error}") from error
        shown = list(range(min(instances, len(seen))))
        for name in figures:
            if name == "attention" and seen.attention is None:
                continue
            written.append(_save(draw[name](seen, names, shown), out / f"{path.stem}-{name}.png"))
    return written


def _save(figure: object, path: Path) -> Path:
    figure.savefig(path, dpi=130, facecolor="white")  # type: ignore[attr-defined]
    return path
