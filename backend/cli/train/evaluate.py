"""`transfiner evaluate` of models and running APIs, `transfiner score` of prediction files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.cli.types import (
    DEVICE,
    EXISTING_PATH,
    FILE,
    json_option,
    limit_threads,
    overrides_option,
    plain_errors,
    print_result,
    weights_option,
)

if TYPE_CHECKING:
    from training.evaluation.score import Score

Json = dict[str, Any]
TextOf = Callable[[Json], str]


@click.command()
@weights_option("Checkpoint directory or name; may be left out with --served.")
@click.option("--scenes", "split", type=click.Choice(["train", "val", "demo"]), default=None, help="Generated scenes.")
@click.option(
    "--coco", nargs=2, type=EXISTING_PATH, default=None, help="Annotation file and image folder of a COCO-format set."
)
@click.option("--data", "data_set", metavar="SET", help="Any set by name, as in `transfiner data check`.")
@click.option("--count", type=click.IntRange(1), default=200, help="Number of scenes.")
@click.option("--ratio", type=float, default=0.02, help="Boundary width / image diagonal.")
@click.option("--device", type=DEVICE, default="cpu")
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads of a process; 0: the machine's.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    help="That share a CPU; same figures with the same --threads (1 each by default).",
)
@overrides_option
@click.option(
    "--picture", type=FILE, help="Draw truth, coarse and refined masks of the first images into this PNG or JPEG."
)
@click.option("--rows", type=click.IntRange(1), default=4, help="Images in the picture.")
@click.option(
    "--edits",
    is_flag=True,
    help="Count what a simulated annotator does to correct the shown regions, beside other ways to draw them.",
)
@click.option(
    "--prompts",
    type=click.Choice(["box", "clicks"]),
    help="Measure the promptable network: masks from true boxes, or clicks until a mask is good.",
)
@click.option("--grabcut", is_flag=True, help="Prompts: GrabCut beside ours (needs OpenCV; slow).")
@click.option(
    "--good",
    nargs=2,
    type=float,
    default=(0.95, 3.0),
    metavar="IOU PX",
    help="Edits: outlines at least so alike, and nowhere farther off, are left alone.",
)
@click.option("--shown-from", type=click.FloatRange(0, 1), default=0.5, help="Edits: lowest score shown.")
@click.option(
    "--served",
    metavar="URL",
    help="Score what a running API returns, and the gap to the raw masks of --weights; its credentials are read from "
    "the API's own variables.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.25,
    help="Served: lowest score asked for; the API's TRANSFINER_SCORE_FLOOR is the lowest it gives.",
)
@json_option
def evaluate(
    weights: Path | None,
    split: str | None,
    coco: tuple[Path, Path] | None,
    data_set: str | None,
    count: int,
    ratio: float,
    device: str,
    threads: int,
    processes: int,
    overrides: tuple[tuple[str, str], ...],
    picture: Path | None,
    rows: int,
    edits: bool,
    prompts: str | None,
    grabcut: bool,
    good: tuple[float, float],
    shown_from: float,
    as_json: bool,
    served: str | None,
    threshold: float,
) -> None:
    """Measure mask AP and boundary AP of a model's refined and coarse masks, or of what a running API serves.

    \b
    Example: transfiner evaluate --weights model/weights/scenes-small --scenes val --count 200
             transfiner evaluate --weights model/weights/scenes-small --scenes val --count 100 --edits
             transfiner evaluate --weights photos --coco instances.json images/ --prompts box
             transfiner evaluate --weights model/weights/scenes-small --scenes val --served http://127.0.0.1:9090
    """
    from training.datasets import open_set

    name = _set_name(split, coco, data_set, count)
    if processes > 1 and device != "cpu":
        raise click.UsageError(f"--processes shares a CPU; --device is {device}")
    limit_threads(threads or int(processes > 1))
    if (edits or served) and picture:
        raise click.UsageError("--picture is of raw masks; leave out --edits and --served")
    if weights is None and (prompts or not served):
        raise click.UsageError("--weights is missing; only --served does without")
    flat = [part for pair in overrides for part in pair]
    options: dict[str, Any] = {"device": device, "ratio": ratio, "overrides": flat, "processes": processes}
    with plain_errors():  # a set, classes, an override, an image that is missing
        samples = open_set(name)
        if weights is not None and prompts:
            outcome, text_of = _prompts(samples, weights, prompts, device, with_grabcut=grabcut)
        elif edits:
            source = served or weights
            outcome, text_of = _edits(source, samples, name, good, shown_from, device=device, overrides=flat)
        elif served:
            from backend.devtools.served_evaluation import comparison_text, evaluate_served

            outcome, text_of = evaluate_served(served, samples, name, weights, threshold, **options), comparison_text
        else:
            assert weights is not None  # refused above
            outcome, text_of = _raw(samples, name, weights, picture, rows, options), _table
    print_result(outcome, "" if as_json else text_of(outcome), as_json)


def _set_name(split: str | None, coco: tuple[Path, Path] | None, data_set: str | None, count: int) -> str:
    if sum(option is not None for option in (split, coco, data_set)) != 1:
        raise click.UsageError("choose one set: --scenes val, --coco ANNOTATIONS.json IMAGES/, or --data SET")
    return f"scenes:{split}:{count}" if split else f"coco:{coco[0]}:{coco[1]}" if coco else data_set or ""


def _edits(
    source: str | Path | None, samples: Any, name: str, good: tuple[float, float], shown_from: float, **options: Any
) -> tuple[Json, TextOf]:
    """Measure the edits that correct the shown regions, of a running API (its address) or of weights."""
    from backend.devtools.edit_plan import GoodOutline
    from backend.devtools.served_evaluation import evaluate_served_edits
    from backend.devtools.simulated_edits import edits_text, evaluate_edits

    rule = GoodOutline(iou=good[0], distance_px=good[1])
    if isinstance(source, Path):
        return evaluate_edits(samples, name, source, good=rule, shown_from=shown_from, **options), edits_text
    return evaluate_served_edits(source or "", samples, name, rule, shown_from), edits_text


def _prompts(samples: Any, weights: Path, kind: str, device: str, *, with_grabcut: bool) -> tuple[Json, TextOf]:
    """Measure the promptable network on a set, by boxes or clicks."""
    from model.inference.prompt_predictor import PromptPredictor
    from training.prompts.data import objects_of
    from training.prompts.evaluate import box_report, box_text, clicks_text, measure_boxes, measure_clicks

    predictor = PromptPredictor.from_checkpoint(weights, device=device)
    objects = objects_of(samples)
    with click.progressbar(length=len(objects.objects), label=f"prompting by {kind}", file=sys.stderr) as bar:
        if kind == "clicks":
            return measure_clicks(predictor, objects, progress=lambda: bar.update(1)), clicks_text
        figures = measure_boxes(predictor, objects, with_grabcut=with_grabcut, progress=lambda: bar.update(1))
    return box_report(figures), box_text


def _raw(samples: Any, name: str, weights: Path, picture: Path | None, rows: int, options: Json) -> Json:
    """Measure a checkpoint's masks; draws the picture of --picture, too."""
    from training.datasets.pictures import comparison_row, in_rows, save_picture
    from training.evaluation.run import evaluate_checkpoint

    rows_of_picture: list[Any] = []

    def draw(sample: Any, instances: Any) -> None:
        if len(rows_of_picture) < rows:
            rows_of_picture.append(comparison_row(sample, instances))

    with click.progressbar(length=len(samples), label=f"evaluating {name}", file=sys.stderr) as bar:
        result = evaluate_checkpoint(
            weights, samples, progress=lambda _: bar.update(1), observe=draw if picture else None, **options
        )
    if picture:
        save_picture(in_rows(rows_of_picture), picture)
    return {"weights": str(weights), "set": name} | result.as_dict()


def _table(outcome: Json) -> str:
    from backend.devtools.served_evaluation import ap_table

    return (
        f"{outcome['images']} images of {outcome['set']}, {outcome['seconds_per_image']:.2f} s each\n"
        f"{ap_table({kind: outcome[kind] for kind in ('refined', 'coarse')})}\n"
        f"refinement adds {100 * outcome['boundary_gain']:+.1f} boundary AP"
    )


_METRICS = ("segm", "bbox", "boundary", "lvis", "lvis-bbox", "lvis-boundary")


@click.command()
@click.option(
    "--ground-truth",
    "truth",
    type=EXISTING_PATH,
    required=True,
    help="COCO or LVIS annotation file; a folder for cityscapes and bdd100k.",
)
@click.option(
    "--predictions",
    "results",
    type=EXISTING_PATH,
    required=True,
    help="COCO results file; a folder for cityscapes and bdd100k.",
)
@click.option("--metric", type=click.Choice(_METRICS), default="segm")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["coco", "cityscapes", "bdd100k"]),
    default="coco",
    help="Layout of the files.",
)
@click.option(
    "--ratio",
    type=click.FloatRange(0, 1, min_open=True),
    help="Boundary width / image diagonal; default 0.02, cityscapes 0.005.",
)
@click.option("--mask-areas", is_flag=True, help="Sort detections by mask area even if they carry boxes.")
@click.option(
    "--ignore-unknown-categories",
    "lenient",
    is_flag=True,
    help="Leave out predictions of categories that the ground truth lacks, and say how many.",
)
@click.option(
    "--processes",
    type=click.IntRange(0),
    default=0,
    help="To share much work among; 0: one a core. The numbers are the same.",
)
@json_option
def score(
    truth: Path,
    results: Path,
    metric: str,
    layout: str,
    ratio: float | None,
    mask_areas: bool,
    lenient: bool,
    processes: int,
    as_json: bool,
) -> None:
    """Measure predictions on disk against ground truth: COCO, LVIS, Cityscapes, BDD100K.

    \b
    Example: transfiner score --ground-truth instances_val2017.json --predictions results.json --metric boundary
    """
    from training.evaluation.score import score as measure
    from training.metrics.coco_schema import RecordError

    for option, path in (("--ground-truth", truth), ("--predictions", results)):
        if path.is_dir() == (layout == "coco"):
            expected = "a file" if layout == "coco" else "a folder"
            raise click.UsageError(f"{option} {path} is not {expected}, which --format {layout} expects")
    try:
        result = measure(
            truth,
            results,
            metric,
            layout,
            ratio=ratio,
            mask_areas=mask_areas,
            unknown_categories=lenient,
            processes=processes or os.cpu_count() or 1,
            progress=_count,
        )
    except RecordError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps(result.as_dict()) if as_json else _table_of_score_command(result))


def _count(done_count: int, total: int) -> None:
    """Print a counter to standard error, where that is a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r{done_count} of {total} images", err=True, nl=done_count == total)


def _table_of_score_command(result: Score) -> str:
    values = result.as_dict()
    lines = [f"{result.metric} ({result.layout}), {result.images} images, {result.detections} detections, percent"]
    names = [name for name in result.numbers if "/" not in name]
    lines.append("  ".join(f"{name:>6}" for name in names))
    lines.append("  ".join(f"{_percent(values[name]):>6}" for name in names))
    category_values = {name: value for name, value in values["per_category"].items() if value >= 0}
    lines += [f"  {name:<24}{_percent(value):>6}" for name, value in sorted(category_values.items())]
    absent_count = len(values["per_category"]) - len(category_values)
    lines += [f"  {absent_count} categories without ground truth"] if absent_count else []
    return "\n".join([*lines, *(f"Note: {note}" for note in result.notes)])


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"
