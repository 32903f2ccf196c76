"""Options of `transfiner evaluate --served URL`.

The served half of `transfiner evaluate`: both passes with their progress bars, then the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from backend.devtools.served_evaluation.client import Credentials, ServedError
from backend.devtools.served_evaluation.evaluation import LabelError, Served, ServedOptions, predict_set, score_served
from model.checkpoints.metadata import read_metadata
from training.datasets import AnySet, Sample, usable_samples

if TYPE_CHECKING:
    from training.evaluation.edits import GoodOutline

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--served", metavar="URL", help="Score what a running API returns, and the gap to the raw masks of --weights."
    ),
    click.option("--user", envvar="TRANSFINER_BASIC_AUTH_USER", default="", help="Served: user of its basic auth."),
    click.option(
        "--password",
        envvar="TRANSFINER_BASIC_AUTH_PASSWORD",
        default="",
        help="Served: its password; better as TRANSFINER_BASIC_AUTH_PASSWORD.",
    ),
    click.option(
        "--token",
        envvar="TRANSFINER_API_TOKEN",
        default="",
        help="Served: bearer token; better as TRANSFINER_API_TOKEN.",
    ),
    click.option(
        "--regions",
        type=click.Choice(["polygon", "brush", "rectangle"]),
        default="polygon",
        show_default=True,
        help="Served: what to ask for.",
    ),
    click.option(
        "--tolerance-px",
        type=click.FloatRange(0),
        default=None,
        help="Served: of the polygons, in pixels; default: the API's setting.",
    ),
    click.option(
        "--threshold",
        type=click.FloatRange(0, 1),
        default=0.25,
        show_default=True,
        help="Served: lowest score asked for; the API's TRANSFINER_SCORE_FLOOR is the lowest it gives.",
    ),
    click.option(
        "--label-config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Served: ask with this label configuration instead of one made for the set's classes.",
    ),
    click.option("--project", default="", metavar="ID", help="Served: be served the model of this project."),
    click.option("--chunk", type=click.IntRange(1), default=8, show_default=True, help="Served: images in a request."),
    click.option(
        "--patience",
        "patience_s",
        type=click.FloatRange(0, min_open=True),
        default=600.0,
        show_default=True,
        help="Served: give up when no image was done for so many seconds.",
    ),
)


def served_options(command: Command) -> Command:
    """Adds the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


Json = dict[str, Any]


def served_options_of(options: dict[str, Any]) -> ServedOptions:
    """From the command's options."""
    credentials = Credentials(options.pop("user"), options.pop("password"), options.pop("token"))
    return ServedOptions(**options, credentials=credentials)


def evaluate_served(
    asked: ServedOptions, samples: AnySet, name: str, *, weights: Path | None, ratio: float, **how: Any
) -> Json:
    """The outcome as JSON; see `score_served`.

    Args:
        weights: of the model whose raw masks are compared; None: only what is served is scored.
        how: of `evaluate_checkpoint`.
    """
    version = str(read_metadata(weights)["version"]) if weights else None
    served = _predict(asked, samples, version)
    raw = _raw(samples, name, weights, ratio=ratio, **how) if weights else None
    outcome: Json = {"set": name, "weights": str(weights) if weights else None}
    outcome |= score_served(asked, served, raw=raw, ratio=ratio)
    if outcome["failed"] and not served.objects.versions:
        reasons = "; ".join(failure["reason"] for failure in outcome["failed"])
        raise click.ClickException(f"every task failed: {reasons}")
    return outcome


def _predict(asked: ServedOptions, samples: AnySet, version: str | None) -> Served:
    """Ask for every image, with a progress bar."""
    try:
        with click.progressbar(length=len(samples), label=f"asking {asked.served}", file=sys.stderr) as bar:
            return predict_set(asked, samples, version=version, progress=bar.update)
    except (ServedError, LabelError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _raw(samples: AnySet, name: str, weights: Path, **how: Any) -> list[Json]:
    """COCO results of the model's own masks."""
    from training.evaluation.coco_format import coco_results
    from training.evaluation.run import evaluate_checkpoint

    results: list[Json] = []

    def observe(sample: Sample, instances: Any) -> None:
        masks = instances.pred_masks.numpy().astype(bool)
        results.extend(coco_results(sample.image_id, masks, instances.scores.numpy(), instances.pred_classes.numpy()))

    with click.progressbar(length=len(samples), label=f"raw masks of {name}", file=sys.stderr) as bar:
        evaluate_checkpoint(weights, samples, observe=observe, progress=lambda _: bar.update(1), **how)
    return results


def evaluate_served_edits(asked: ServedOptions, samples: AnySet, name: str, *, good: GoodOutline) -> Json:
    """What it takes by hand to correct the regions that a running API serves for a set."""
    from backend.devtools.simulated_edits import SERVED, outcome_of, shown_regions, true_objects, without_crowd
    from training.evaluation.edits import Edits

    served = _predict(asked, samples, None)
    answers = {image_id: (size_hw, regions) for image_id, size_hw, regions in served.objects.answers}
    edits = Edits()
    for _, sample in usable_samples(samples):
        (height, width), regions = answers.get(sample.image_id, (sample.image.shape[:2], []))
        shown = without_crowd(shown_regions(regions, height, width), sample)
        edits.add(shown, true_objects(sample, samples.class_names, good), good)
    return outcome_of(name, asked.served, {SERVED: edits}, good, asked.threshold)
