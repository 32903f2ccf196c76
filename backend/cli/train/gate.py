"""`transfiner gate` and `transfiner models compare`: models judged on held-out corrections."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.cli.types import (
    FOLDER,
    REFUSED,
    device_option,
    json_option,
    open_registry,
    plain_errors,
    project_option,
    registry_option,
)
from backend.settings import load_settings
from backend.versions.store import DEFAULT_STORE, find_model
from model.checkpoints.metadata import METADATA_FILE, CheckpointError

if TYPE_CHECKING:
    from training.datasets import Sample
    from training.gate import Verdict
    from training.gate.holdout import Detect, Detection
    from training.gate.verdict import GateRules
    from training.registry import Registry

rule_option = click.option(
    "--rule",
    "rules",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="A rule of the gate, e.g. --rule confidence 0.9; TRANSFINER_GATE_RULES by default.",
)
out_option = click.option("--out", type=FOLDER, help="Folder for the report and its pictures.")


@dataclass(frozen=True)
class CheckpointPlaces:
    """Looks up names of checkpoints and snapshots: as folders, and in a project of the registry if one is given."""

    project: str | None
    registry: Registry | None
    cache: Path

    def model(self, name: str) -> Path:
        """Find a checkpoint by its directory, by the name of a model, or as a version of the project."""
        if (Path(name) / METADATA_FILE).is_file():
            return Path(name)
        if self.registry is None or self.project is None:
            try:
                return find_model(name, DEFAULT_STORE)
            except CheckpointError as error:
                raise click.ClickException(f"{error}; for a version of the registry give --project") from error
        return self.registry.fetch(self.project, name, self.cache)

    def snapshot(self, name: str | None) -> Path:
        """Find a snapshot by its directory or its digest; None: the project's newest."""
        if name and Path(name).is_dir():
            return Path(name)
        if self.registry is None or self.project is None:
            raise click.ClickException(f"--holdout is {name!r}, expected a snapshot directory, or give --project")
        digests = [snapshot.digest for snapshot in self.registry.snapshots(self.project)]
        if not digests:
            raise click.ClickException(f"project {self.project} has no snapshot in {self.registry.url}; give --holdout")
        return self.registry.fetch_snapshot(self.project, name or digests[-1], self.cache)


def checkpoint_places(project: str | None, registry_url: str | None) -> CheckpointPlaces:
    """Build the look-up of a command's names."""
    return CheckpointPlaces(project, open_registry(registry_url) if project else None, load_settings().registry_cache)


def gate_rules(options: Sequence[tuple[str, str]]) -> GateRules:
    """Rules of the gate: those of the settings, overridden by those of the command line.

    Raises:
        BadParameter: a rule is unknown or no number.
    """
    from training.gate.verdict import parse_rules

    values: dict[str, Any] = dict(load_settings().gate_rules)
    try:
        return parse_rules(values | {name: _number(value) for name, value in options})
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rule") from error


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # parse_rules refuses it and says what it expected


def detector(device: str) -> Detect:
    """Make a function that detects objects with a checkpoint, with a bar on the error stream."""
    from model.inference.predictor import choose_device
    from training.gate.holdout import detect_with

    device_name = str(choose_device(device))

    def detect(directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
        label = f"{directory.name} looks at {len(samples)} images"
        with click.progressbar(length=len(samples), label=label, file=sys.stderr) as bar:
            return detect_with(device_name, progress=lambda _: bar.update(1))(directory, samples)

    return detect


@click.command("compare")
@click.argument("before")
@click.argument("after")
@click.option("--holdout", help="Snapshot directory or digest to measure both on; the project's newest by default.")
@project_option
@registry_option
@rule_option
@device_option
@out_option
@json_option
def compare_models(
    before: str,
    after: str,
    holdout: str | None,
    project: str | None,
    registry_url: str | None,
    rules: tuple[tuple[str, str], ...],
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure two models on the same hold-out, with intervals; changes nothing.

    Models are checkpoint directories, or versions with --project.

    \b
    Example: transfiner models compare round-2 round-3 --project 12
    """
    with plain_errors():
        places = checkpoint_places(project, registry_url)
        from training.gate import judge

        verdict = judge(
            places.model(after),
            places.model(before),
            None,
            places.snapshot(holdout),
            rules=gate_rules(rules),
            detect=detector(device),
            out=out,
        )
    click.echo(json.dumps(verdict.as_dict(), ensure_ascii=False) if as_json else verdict.table())


@click.command()
@click.argument("candidate")
@click.option("--incumbent", help="What serves now; the project's active version by default.")
@click.option("--best", help="The best that ever served; of the project by default.")
@click.option("--holdout", help="Snapshot whose hold-out decides; the project's newest by default.")
@click.option("--earlier", multiple=True, help="Snapshot that must not be forgotten; the project's others by default.")
@click.option("--promote", "promoting", is_flag=True, help="Make the candidate serve if it may.")
@project_option
@registry_option
@rule_option
@device_option
@out_option
@json_option
def gate(
    candidate: str,
    incumbent: str | None,
    best: str | None,
    holdout: str | None,
    earlier: tuple[str, ...],
    promoting: bool,
    project: str | None,
    registry_url: str | None,
    rules: tuple[tuple[str, str], ...],
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge a candidate against what serves, on held-out corrections; exit code 3 when it is refused.

    Models are checkpoint directories, or versions with --project; then the verdict is kept with the version.

    \b
    Example: transfiner gate round-3 --project 12 --promote
    Example: transfiner gate new/ --incumbent old/ --holdout snapshot/
    """
    if promoting and not project:
        raise click.UsageError("--promote needs --project")
    chosen_rules = gate_rules(rules)
    with plain_errors(), tempfile.TemporaryDirectory() as scratch:
        places = checkpoint_places(project, registry_url)
        opponents = _others(places, candidate, incumbent, best)
        snapshots = _snapshots(places, holdout, earlier)
        papers = out or Path(scratch)
        from training.gate import judge

        verdict = judge(
            places.model(candidate),
            *opponents,
            snapshots[0],
            earlier=snapshots[1:],
            rules=chosen_rules,
            detect=detector(device),
            out=papers,
        )
        _keep(places, candidate, verdict, papers, promoting)
    click.echo(json.dumps(verdict.as_dict(), ensure_ascii=False) if as_json else verdict.table())
    sys.exit(0 if verdict.promote else REFUSED)


def _others(
    places: CheckpointPlaces, candidate: str, incumbent: str | None, best_version: str | None
) -> tuple[Path | None, Path | None]:
    """Incumbent and best-ever checkpoint; None for a missing one, and for a best that is one of the others."""
    if places.registry is not None and places.project is not None:
        incumbent = incumbent or places.registry.active(places.project)
        best_version = best_version or places.registry.best_ever(places.project)
    if incumbent == candidate:
        raise click.ClickException(f"{candidate} serves already: there is nothing to judge")
    best_version = None if best_version in (incumbent, candidate) else best_version
    return places.model(incumbent) if incumbent else None, places.model(best_version) if best_version else None


def _snapshots(places: CheckpointPlaces, holdout: str | None, earlier: tuple[str, ...]) -> list[Path]:
    """The snapshot whose hold-out decides, then the earlier ones."""
    newest = places.snapshot(holdout)
    if earlier or places.registry is None or places.project is None:
        return [newest, *(places.snapshot(name) for name in earlier)]
    digests = [
        snapshot.digest for snapshot in places.registry.snapshots(places.project) if snapshot.digest != newest.name
    ]
    return [newest, *(places.snapshot(digest) for digest in digests)]


def _keep(places: CheckpointPlaces, candidate: str, verdict: Verdict, papers: Path, promoting: bool) -> None:
    """Store the verdict with the version, and promote it where asked; nothing for a candidate that is a directory."""
    registry, project = places.registry, places.project
    if registry is None or project is None or Path(candidate).is_dir():
        return
    registry.attach(project, candidate, papers)
    registry.mark(project, candidate, "candidate" if verdict.promote else "rejected", verdict.as_dict())
    if promoting and verdict.promote:
        registry.promote(project, candidate)
