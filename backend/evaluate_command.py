"""`transfiner evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from backend.served.options import served_options


@click.command()
@click.option("--weights", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Checkpoint directory; may be left out with --served.")  # fmt: skip
@click.option(
    "--scenes", "split", type=click.Choice(["train", "val", "demo"]), default=None, help="Generated scenes."
)
@click.option("--coco", nargs=2, type=click.Path(exists=True, path_type=Path), default=None,
              help="Annotation file and image folder of a COCO-format set.")  # fmt: skip
@click.option("--data", "named", metavar="SET", help="Any set by name, as in `transfiner data check`.")
@click.option("--submission", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the detections for COCO's server: .json or .zip (sets in COCO's format).")  # fmt: skip
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Number of scenes.")
@click.option("--ratio", type=float, default=0.02, show_default=True, help="Boundary width / image diagonal.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--threads", type=int, default=0, help="Threads of the arithmetic of a process; 0: the machine's."
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True,
              help="That share a CPU; same figures with the same --threads (1 each by default).")  # fmt: skip
@click.option(
    "--set", "overrides", nargs=2, multiple=True, metavar="KEY VALUE", help="Override a configuration key."
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw truth, coarse and refined masks of the first images into this PNG or JPEG.")  # fmt: skip
@click.option("--rows", type=click.IntRange(1), default=4, show_default=True, help="Images in the picture.")
@click.option("--card", is_flag=True, help="Write the figures into MODEL_CARD.md beside the weights.")
@served_options
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def evaluate(
    weights: Path | None, split: str | None, coco: tuple[Path, Path] | None, named: str | None, submission: Path | None,
    count: int, ratio: float, device: str,
    threads: int, processes: int, overrides: tuple[tuple[str, str], ...], picture: Path | None, rows: int, card: bool,
    as_json: bool, served: str | None, **served_as: Any,
) -> None:  # fmt: skip
    """Measure mask AP and boundary AP of a model's refined and coarse masks, or of what a running API serves.

    \b
    Example: transfiner evaluate --weights model/weights/scenes-small --scenes val --count 200
             transfiner evaluate --weights model/weights/scenes-small --scenes val --served http://127.0.0.1:9090
    """
    import torch

    from training.datasets import open_set

    if sum(one is not None for one in (split, coco, named)) != 1:
        raise click.UsageError("choose one set: --scenes val, --coco ANNOTATIONS.json IMAGES/, or --data SET")
    if processes > 1 and device != "cpu":
        raise click.UsageError(f"--processes shares a CPU; --device is {device}")
    if threads > 0 or processes > 1:
        torch.set_num_threads(threads or 1)
    name = f"scenes:{split}:{count}" if split else f"coco:{coco[0]}:{coco[1]}" if coco else named or ""
    flat = [part for pair in overrides for part in pair]
    how: dict[str, Any] = {"device": device, "ratio": ratio, "overrides": flat, "processes": processes}
    try:
        samples = open_set(name)
        if served:
            if submission or picture or card:
                raise click.UsageError(
                    "--submission, --picture and --card are of raw masks; leave out --served"
                )
            _served(samples, name, weights, {"served": served, **served_as}, how, as_json)
            return
        if weights is None:
            raise click.UsageError("--weights is missing; only --served does without")
        outcome = _raw(samples, name, weights, submission, picture, rows, how)
    except (ValueError, FileNotFoundError) as error:  # a set, classes, an override, an image that is missing
        raise click.ClickException(str(error)) from error
    if card:
        from training.model_card import write_card

        write_card(weights, outcome, name, _command(weights, split, coco, count, named))
    _say(outcome, as_json, _table)


def _served(samples: Any, name: str, weights: Path | None, served_as: dict[str, Any], how: dict[str, Any],
            as_json: bool) -> None:  # fmt: skip
    """What a running API returns, beside the raw masks if there are weights."""
    from backend.served.command import asked_of, evaluate_served
    from backend.served.gap import as_text

    _say(evaluate_served(asked_of(served_as), samples, name, weights=weights, **how), as_json, as_text)


def _raw(samples: Any, name: str, weights: Path, submission: Path | None, picture: Path | None, rows: int,
         how: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    """Figures of a checkpoint's masks; also writes the picture and the submission that are asked for."""
    from training.datasets import CocoSet
    from training.evaluation.run import evaluate_checkpoint
    from training.evaluation.submission import Submission
    from training.pictures import Comparison

    if submission and not isinstance(samples, CocoSet):
        raise click.UsageError(f"--submission needs a set in COCO's format, not {name}")
    drawn = Comparison(rows) if picture else None
    submitted = Submission(samples) if submission else None

    def observe(sample: Any, found: Any) -> None:
        for one in (drawn, submitted):
            if one is not None:
                one(sample, found)

    with click.progressbar(length=len(samples), label=f"evaluating {name}", file=sys.stderr) as bar:
        result = evaluate_checkpoint(
            weights,
            samples,
            progress=lambda _: bar.update(1),
            observe=observe if drawn or submitted else None,
            **how,
        )
    if picture and drawn:
        drawn.save(picture)
    if submission and submitted:
        submitted.save(submission)
    return {"weights": str(weights), "set": name} | result.as_dict()


def _say(outcome: dict[str, Any], as_json: bool, as_text: Callable[[dict[str, Any]], str]) -> None:
    from training.plain_json import plain

    click.echo(json.dumps(plain(outcome)) if as_json else as_text(outcome))


def _command(
    weights: Path, split: str | None, coco: tuple[Path, Path] | None, count: int, named: str | None
) -> str:
    chosen = (
        f"--scenes {split} --count {count}"
        if split
        else f"--coco {coco[0]} {coco[1]}"
        if coco
        else f"--data {named}"
    )
    return f"transfiner evaluate --weights {weights} {chosen}"


def _table(outcome: dict[str, Any]) -> str:
    lines = [f"{outcome['images']} images of {outcome['set']}, {outcome['seconds_per_image']:.2f} s each"]
    lines.append(f"{'':10}{'mask AP':>10}{'AP50':>8}{'AP75':>8}{'boundary AP':>14}{'AP50':>8}{'AP75':>8}")
    for kind in ("refined", "coarse"):
        mask, boundary = outcome[kind]["mask"], outcome[kind]["boundary"]
        row = [f"{100 * mask[key]:.1f}" for key in ("AP", "AP50", "AP75")]
        row += [f"{100 * boundary[key]:.1f}" for key in ("AP", "AP50", "AP75")]
        lines.append(
            f"{kind:10}"
            + "".join(text.rjust(width) for text, width in zip(row, (10, 8, 8, 14, 8, 8), strict=True))
        )
    lines.append(f"refinement adds {100 * outcome['boundary_gain']:+.1f} boundary AP")
    return "\n".join(lines)
