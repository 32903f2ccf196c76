"""`transfiner effort compare`: how well the order of tasks predicts the work that they take."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from backend.cli.types import (
    EXISTING_FILE,
    EXISTING_FOLDER,
    SuggestingGroup,
    device_option,
    json_option,
    limit_threads,
    plain_errors,
    weights_option,
)

if TYPE_CHECKING:
    from backend.learning.annotation_cost import CorrectionCost


@click.group(cls=SuggestingGroup)
def effort() -> None:
    """Compare the order of tasks with the work they take.

    \b
    Example: transfiner effort compare --weights scenes-small --set scenes:val:60
    """


@effort.command("compare")
@weights_option("Checkpoint directory or name.", required=True)
@click.option("--snapshot", "snapshot", type=EXISTING_FOLDER, help="Images and corrections of a snapshot.")
@click.option(
    "--folds",
    type=EXISTING_FILE,
    help="Cross-validation that a few-shot training wrote, for the snapshot's training images.",
)
@click.option("--set", "set_name", help="Instead of a snapshot: a set as in `transfiner data check`.")
@click.option("--class", "names", multiple=True, help="Only this class, and images that show it.")
@click.option("--count", type=click.IntRange(1), default=100, help="Most images.")
@click.option(
    "--shown-from",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Detections below this score are not shown to people.",
)
@device_option
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads of the arithmetic; 0: all.")
@json_option
def compare_effort(weights: Path, as_json: bool, **images: Any) -> None:
    """Compare orders of tasks with the edits that a simulated annotator needs.

    The expected edit is that of the model's metadata.json; without one, it is fitted here, and each image is judged by
    a fit that has not seen it.

    \b
    Example: transfiner effort compare --weights scenes-small --set scenes:val:60
    """
    from backend.learning.annotation_cost import compare_orders
    from training.snapshots.annotation_cost import cross_fitted_edits, load_effort

    with plain_errors():
        cost, name = _measure(weights, **images)
        effort_model = load_effort(weights)
    if effort_model is not None:
        expected, origin = (
            [effort_model.expected_edit(features) for features in cost.features],
            f"fitted on {effort_model.fitted_on}",
        )
    else:
        expected = cross_fitted_edits(cost.features, cost.edits).tolist()
        origin = "fitted on the other four fifths of these images"
    scores = {
        "expected edit": [-value for value in expected],
        "score * (1 - uncertainty)": cost.certainty,
        "mean confidence": cost.confidence,
    }
    figures = compare_orders(scores, cost.edits)
    if as_json:
        rows = {order: asdict(figure) for order, figure in figures.items()}
        click.echo(json.dumps({"set": name, "images": len(cost.edits), "effort": origin, "orders": rows}))
        return
    click.echo(f"{len(cost.edits)} images of {name}, {sum(cost.edits):.0f} actions in all; {origin}")
    table = [
        (order, f"{row.rank_correlation:+.3f}", f"{row.low:+.2f}..{row.high:+.2f}", f"{row.first_fifth:.0%}")
        for order, row in figures.items()
    ]
    headings = ("order", "rank correlation", "95 %", "edits in first fifth")
    click.echo(tabulate(table, headings, "plain", disable_numparse=True, colalign=("left", *["right"] * 3)))


def _measure(
    weights: Path,
    snapshot: Path | None,
    folds: Path | None,
    set_name: str | None,
    names: tuple[str, ...],
    count: int,
    shown_from: float,
    device: str,
    threads: int,
) -> tuple[CorrectionCost, str]:
    if (set_name is None) == (snapshot is None):
        raise click.UsageError("choose one set: --snapshot DIR or --set scenes:val")
    from model.errors import require_model_libraries

    require_model_libraries()
    from torch.utils.data import Subset

    from backend.learning.annotation_cost import crossed_predictor, measure_correction_cost, snapshot_samples
    from model.inference.predictor import Predictor
    from training.datasets import open_set
    from training.fewshot.curve import class_samples

    limit_threads(threads)
    samples: Any
    if snapshot:
        samples, classes, name = snapshot_samples(snapshot, count, with_training=folds is not None)
    else:
        name = str(set_name)
        samples_of_set: Any = open_set(name)
        class_set: Any = class_samples(samples_of_set, names) if names else samples_of_set
        samples, classes = Subset(class_set, range(min(count, len(class_set)))), class_set.class_names
    predictor = Predictor.from_checkpoint(weights, device=device, score_threshold=shown_from / 2)
    with click.progressbar(length=len(samples), label=f"predicting {name}", file=sys.stderr) as bar:
        cost = measure_correction_cost(
            crossed_predictor(predictor, folds) if folds else predictor,
            samples,
            classes,
            shown_from=shown_from,
            progress=lambda: bar.update(1),
        )
    return cost, name
