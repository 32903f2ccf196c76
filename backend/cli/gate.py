"""`transfiner models compare`.

`transfiner gate`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.cli import options
from backend.cli.registry import REFUSED, plain_errors, project_option, registry_option
from backend.cli.types import json_option

if TYPE_CHECKING:
    from training.gate import Verdict


@click.command("compare")
@click.argument("before")
@click.argument("after")
@click.option("--holdout", help="Snapshot directory or digest to measure both on; the project's newest by default.")
@click.option("--recorded", is_flag=True, help="Measure nothing: show the figures kept with both versions.")
@project_option
@registry_option
@options.cache_option
@options.rule_option
@options.device_option
@options.out_option
@json_option
def compare_models(
    before: str,
    after: str,
    holdout: str | None,
    recorded: bool,
    project: str | None,
    registry_url: str | None,
    cache: Path | None,
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
        where = options.checkpoint_places(project, registry_url, cache)
        if recorded:
            _show_recorded(where, before, after, as_json)
            return
        from training.gate import judge

        verdict = judge(
            where.model(after),
            where.model(before),
            None,
            where.snapshot(holdout),
            rules=options.gate_rules(rules),
            detect=options.detector(device),
            out=out,
        )
    click.echo(json.dumps(verdict.as_dict(), ensure_ascii=False) if as_json else verdict.table())


def _show_recorded(where: options.CheckpointPlaces, before: str, after: str, as_json: bool) -> None:
    if where.registry is None or where.project is None:
        raise click.UsageError("--recorded shows what the registry keeps; give --project")
    both = [where.registry.version(where.project, name).as_dict() for name in (before, after)]
    if as_json:
        click.echo(json.dumps(both, indent=2, ensure_ascii=False))
        return
    for key in both[0]:
        left, right = (_text(entry[key]) for entry in both)
        mark = "  " if left == right else "! "
        click.echo(f"{mark}{key:<16}{left:<44} {right}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)[:42] or "-"


@click.command()
@click.argument("candidate")
@click.option("--incumbent", help="What serves now; the project's active version by default.")
@click.option("--best", help="The best that ever served; of the project by default.")
@click.option("--holdout", help="Snapshot whose hold-out decides; the project's newest by default.")
@click.option("--earlier", multiple=True, help="Snapshot that must not be forgotten; the project's others by default.")
@click.option("--promote", "promoting", is_flag=True, help="Make the candidate serve if it may.")
@project_option
@registry_option
@options.cache_option
@options.rule_option
@options.device_option
@options.out_option
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
    cache: Path | None,
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
    chosen_rules = options.gate_rules(rules)
    with plain_errors(), tempfile.TemporaryDirectory() as scratch:
        where = options.checkpoint_places(project, registry_url, cache)
        others = _others(where, candidate, incumbent, best)
        snapshots = _snapshots(where, holdout, earlier)
        papers = out or Path(scratch)
        from training.gate import judge

        verdict = judge(
            where.model(candidate),
            *others,
            snapshots[0],
            earlier=snapshots[1:],
            rules=chosen_rules,
            detect=options.detector(device),
            out=papers,
        )
        _keep(where, candidate, verdict, papers, promoting)
    click.echo(json.dumps(verdict.as_dict(), ensure_ascii=False) if as_json else verdict.table())
    sys.exit(0 if verdict.promote else REFUSED)


def _others(
    where: options.CheckpointPlaces, candidate: str, incumbent: str | None, best: str | None
) -> tuple[Path | None, Path | None]:
    """Incumbent and best-ever; None for what there is not, and for the best if it is one of the others."""
    if where.registry is not None and where.project is not None:
        incumbent = incumbent or where.registry.active(where.project)
        best = best or where.registry.best_ever(where.project)
    if incumbent == candidate:
        raise click.ClickException(f"{candidate} serves already: there is nothing to judge")
    best = None if best in (incumbent, candidate) else best
    return where.model(incumbent) if incumbent else None, where.model(best) if best else None


def _snapshots(where: options.CheckpointPlaces, holdout: str | None, earlier: tuple[str, ...]) -> list[Path]:
    """The one whose hold-out decides, then the earlier ones."""
    asked = where.snapshot(holdout)
    if earlier or where.registry is None or where.project is None:
        return [asked, *(where.snapshot(name) for name in earlier)]
    digests = [snapshot.digest for snapshot in where.registry.snapshots(where.project) if snapshot.digest != asked.name]
    return [asked, *(where.snapshot(digest) for digest in digests)]


def _keep(where: options.CheckpointPlaces, candidate: str, verdict: Verdict, papers: Path, promoting: bool) -> None:
    """The verdict stays with the version; a candidate that is only a directory leaves no trace."""
    registry, project = where.registry, where.project
    if registry is None or project is None or Path(candidate).is_dir():
        return
    registry.attach(project, candidate, papers)
    registry.mark(project, candidate, "candidate" if verdict.promote else "rejected", verdict.as_dict())
    if promoting and verdict.promote:
        registry.promote(project, candidate)
