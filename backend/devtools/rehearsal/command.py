"""The `rehearse` command."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("output/rehearsal"),
    help="Folder of the report, the registry and everything else; must be empty or absent.",
)
@click.option("--rounds", type=click.IntRange(1), help="Rounds of honest corrections.  [default: 3]")
@click.option("--per-round", type=click.IntRange(1), help="Images corrected in each.  [default: 36]")
@click.option("--pool", type=click.IntRange(1), help="Images in the project.  [default: 160]")
@click.option("--test", type=click.IntRange(1), help="Untouched images for the figures.  [default: 40]")
@click.option(
    "--photos",
    nargs=2,
    metavar="TRAIN TEST",
    help="Two sets of photographs, as in `transfiner data check`, "
    "instead of drawn images; as many a round as there are.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Checkpoint to start from (TRANSFINER_MODEL).")
@click.option("--device", default="auto", help="auto, cpu, cuda.")
@click.option("--finetune", help="Fields of FinetuneSettings as a JSON object; 16 epochs by default.")
@click.option("--seed", type=click.IntRange(0), help="Of images and annotator.  [default: 0]")
@click.option("--tiny", is_flag=True, help="Minutes instead of an hour: shows that it runs, not that it learns.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole outcome as JSON.")
def rehearse(
    folder: Path,
    model: Path | None,
    device: str,
    finetune: str | None,
    tiny: bool,
    as_json: bool,
    photos: tuple[str, str] | None,
    **sizes: int | None,
) -> None:
    """Rehearse learning in a real Label Studio: rounds by a simulated annotator, poison, rollback.

    Needs Label Studio's environment (`make setup`). Exit status 1 when a claim of the report does not hold.

    \b
    Example: transfiner rehearse --tiny --out output/rehearsal-tiny
    """
    from backend.devtools.rehearsal.plan import (
        Plan,
        finetuning,
        material_of,
        photograph_plan,
        tiny_plan,
        usual_processes,
    )
    from backend.devtools.rehearsal.report import claims, write_report
    from backend.devtools.rehearsal.scenario import Scenario
    from backend.errors import StartError
    from backend.settings import SCENES_MODEL

    if folder.exists() and any(folder.iterdir()):
        raise StartError(f"{folder} is not empty.", "Choose another --out, or remove it.")
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    settings = _object(finetune)
    try:
        if tiny:
            plan = replace(tiny_plan(settings), photos=photos, **given)
        elif photos:
            plan = photograph_plan(*photos, finetune=finetuning(256, settings), **given)
        else:
            plan = Plan(finetune=finetuning(Plan.height, settings), **given)
        material_of(plan)  # says what is wrong with the photographs before servers are started
    except (ValueError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from error
    plan = replace(plan, processes=1 if tiny else usual_processes(device))
    _forget_our_variables()
    story = Scenario(folder, plan, model or SCENES_MODEL, _report, {"DEVICE": device})
    outcome = story.play()
    page = write_report(outcome, folder)
    held = claims(outcome)
    click.echo(json.dumps({**outcome, "claims": held}) if as_json else page.read_text(encoding="utf-8"))
    click.echo(f"The report is {page}.", err=True)
    if not all(held.values()) and not tiny:
        sys.exit(1)


def _object(text: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(text or "{}")
    except ValueError as error:
        raise click.UsageError(f"--finetune is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise click.UsageError(f"--finetune is {fields!r}, expected a JSON object such as {{}}")
    return fields


def _forget_our_variables() -> None:
    """A rehearsal is the same whatever the service of this machine is set to."""
    for name in [name for name in os.environ if name.startswith(("TRANSFINER_", "LABEL_STUDIO_"))]:
        del os.environ[name]


def _report(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)
