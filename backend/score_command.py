"""`transfiner score`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from training.evaluation.score import Score

_METRICS = ("segm", "bbox", "boundary", "lvis", "lvis-bbox", "lvis-boundary")


@click.command()
@click.option("--ground-truth", "truth", type=click.Path(exists=True, path_type=Path), required=True,
              help="COCO or LVIS annotation file; a folder for cityscapes and bdd100k.")  # fmt: skip
@click.option("--predictions", "found", type=click.Path(exists=True, path_type=Path),
              help="COCO results file; a folder for cityscapes and bdd100k.")  # fmt: skip
@click.option("--metric", type=click.Choice(_METRICS), default="segm", show_default=True)
@click.option("--format", "layout", type=click.Choice(["coco", "cityscapes", "bdd100k"]), default="coco",
              show_default=True, help="Layout of the files.")  # fmt: skip
@click.option("--ratio", type=click.FloatRange(0, 1, min_open=True),
              help="Boundary width / image diagonal; default 0.02, cityscapes 0.005.")  # fmt: skip
@click.option("--mask-areas", is_flag=True, help="Sort detections by mask area even if they carry boxes.")
@click.option("--ignore-unknown-categories", "lenient", is_flag=True,
              help="Leave out predictions of categories that the ground truth lacks, and say how many.")  # fmt: skip
@click.option("--benchmark", is_flag=True,
              help="Time boundary AP beside faster-coco-eval, by default on the perturbed truth.")  # fmt: skip
@click.option("--processes", type=click.IntRange(0), default=0,
              help="To share much work among; 0: one a core. The numbers are the same.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def score(
    truth: Path, found: Path | None, metric: str, layout: str, ratio: float | None, mask_areas: bool, lenient: bool,
    benchmark: bool, processes: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure predictions on disk against ground truth: COCO, LVIS, Cityscapes, BDD100K.

    \b
    Example: transfiner score --ground-truth instances_val2017.json --predictions results.json --metric boundary
    """
    from training.evaluation.coco_reading import RecordError
    from training.evaluation.score import score as measure

    if benchmark:
        _benchmark(truth, found, as_json)
        return
    if found is None:
        raise click.UsageError("--predictions is missing; only --benchmark does without")
    _demand_kind(truth, "--ground-truth", folder=layout != "coco", layout=layout)
    _demand_kind(found, "--predictions", folder=layout != "coco", layout=layout)
    try:
        result = measure(
            truth,
            found,
            metric,
            layout,
            ratio=ratio,
            mask_areas=mask_areas,
            unknown_categories=lenient,
            processes=processes or os.cpu_count() or 1,
            progress=_Progress(),
        )
    except RecordError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps(result.as_dict()) if as_json else _table(result))


def _demand_kind(path: Path, option: str, *, folder: bool, layout: str) -> None:
    if path.is_dir() != folder:
        expected = "a folder" if folder else "a file"
        raise click.UsageError(f"{option} {path} is not {expected}, which --format {layout} expects")


class _Progress:
    """A counter on standard error, where somebody watches."""

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done} of {total} images", err=True, nl=done == total)


def _table(result: Score) -> str:
    values = result.as_dict()
    lines = [
        f"{result.metric} ({result.layout}), {result.images} images, {result.detections} detections, percent"
    ]
    names = [name for name in result.numbers if "/" not in name]
    lines.append("  ".join(f"{name:>6}" for name in names))
    lines.append("  ".join(f"{_percent(values[name]):>6}" for name in names))
    counted = {name: value for name, value in values["per_category"].items() if value >= 0}
    lines += [f"  {name:<24}{_percent(value):>6}" for name, value in sorted(counted.items())]
    absent = len(values["per_category"]) - len(counted)
    lines += [f"  {absent} categories without ground truth"] if absent else []
    return "\n".join([*lines, *(f"Note: {note}" for note in result.notes)])


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


def _benchmark(truth: Path, found: Path | None, as_json: bool) -> None:
    from training.evaluation.boundary_benchmark import compare
    from training.evaluation.coco_reading import RecordError

    try:
        result: dict[str, Any] = compare(truth, found).as_dict()
    except RecordError as error:
        raise click.ClickException(str(error)) from error
    except ModuleNotFoundError as error:
        raise click.ClickException(f"--benchmark needs {error.name}: pip install faster-coco-eval") from error
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"boundary AP of {result['detections']} detections on {result['images']} images, processor seconds"
    )
    click.echo(f"  ours {result['own_cpu_s']:.2f}, faster-coco-eval {result['reference_cpu_s']:.2f}: "
               f"{result['ratio']:.1f} times less")  # fmt: skip
    click.echo(f"  largest difference of the 12 numbers: {result['largest_difference']:.1e}")
