"""What `transfiner gate` and `transfiner models compare` share: naming models and hold-outs, watching them look."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.cli.registry import open_registry
from backend.cli.types import DEVICE
from backend.settings import load_settings
from backend.versions.store import DEFAULT_STORE, find_model
from model.checkpoints.metadata import METADATA_FILE, CheckpointError

if TYPE_CHECKING:
    from training.datasets import Sample
    from training.gate.detections import Detect, Detection
    from training.gate.rules import GateRules
    from training.registry import Registry

rule_option = click.option(
    "--rule",
    "rules",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="A rule of the gate, e.g. --rule confidence 0.9; TRANSFINER_GATE_RULES by default.",
)
device_option = click.option(
    "--device", type=DEVICE, default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ..."
)
cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for what is fetched; TRANSFINER_REGISTRY_CACHE by default.",
)
out_option = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the report and its pictures."
)


@dataclass(frozen=True)
class CheckpointPlaces:
    """Where names are looked up: as folders, and in a project of the registry if one is given."""

    project: str | None
    registry: Registry | None
    cache: Path

    def model(self, name: str) -> Path:
        """A checkpoint directory, given as such, by the name of a model, or as a version of the project.

        Raises:
            ClickException: it is neither.
        """
        if (Path(name) / METADATA_FILE).is_file():
            return Path(name)
        if self.registry is None or self.project is None:
            try:
                return find_model(name, DEFAULT_STORE)
            except CheckpointError as error:
                raise click.ClickException(f"{error}; for a version of the registry give --project") from error
        return self.registry.fetch(self.project, name, self.cache)

    def snapshot(self, name: str | None) -> Path:
        """A snapshot directory, given as such or by its digest; None: the project's newest.

        Raises:
            ClickException: there is none.
        """
        if name and Path(name).is_dir():
            return Path(name)
        if self.registry is None or self.project is None:
            raise click.ClickException(f"--holdout is {name!r}, expected a snapshot directory, or give --project")
        known = [snapshot.digest for snapshot in self.registry.snapshots(self.project)]
        if not known:
            raise click.ClickException(f"project {self.project} has no snapshot in {self.registry.url}; give --holdout")
        return self.registry.fetch_snapshot(self.project, name or known[-1], self.cache)


def checkpoint_places(project: str | None, registry_url: str | None, cache: Path | None) -> CheckpointPlaces:
    """Where the names of one command are looked up."""
    folder = cache or load_settings().registry_cache
    return CheckpointPlaces(project, open_registry(registry_url) if project else None, folder)


def gate_rules(given: Sequence[tuple[str, str]]) -> GateRules:
    """Rules of the settings with those of the command line on top.

    Raises:
        BadParameter: a rule is unknown or no number.
    """
    from training.gate.rules import parse_rules

    values: dict[str, Any] = dict(load_settings().gate_rules)
    try:
        return parse_rules(values | {name: _number(value) for name, value in given})
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rule") from error


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # the rules say what they expected


def detector(device: str) -> Detect:
    """Lets checkpoints look at pictures, with a bar on the error stream."""
    from model.predictor import choose_device
    from training.gate.detections import detect_with

    chosen = str(choose_device(device))

    def detect(directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
        label = f"{directory.name} looks at {len(samples)} images"
        with click.progressbar(length=len(samples), label=label, file=sys.stderr) as bar:
            return detect_with(chosen, progress=lambda _: bar.update(1))(directory, samples)

    return detect
