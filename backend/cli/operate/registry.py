"""`transfiner models ... --project`: list, show, promote, roll back and clear away versions of the registry."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.cli.types import json_option, plain_errors
from backend.processes.running_service import load_settings_of_running

if TYPE_CHECKING:
    from training.registry import Registry, VersionInfo

REFUSED = 3  # exit code: the gate said no

registry_option = click.option(
    "--registry", "registry_url", help="Folder or bucket of the versions; TRANSFINER_REGISTRY by default."
)
project_option = click.option("--project", help="Whose versions: Label Studio's project id, or any name.")
needed_project_option = click.option(
    "--project", required=True, help="Whose versions: Label Studio's project id, or any name."
)


def open_registry(url: str | None) -> Registry:
    """The registry of that folder or URL, else of the settings."""
    from training.registry import Registry

    return Registry(url or load_settings_of_running().registry or "var/registry")


def list_versions(url: str | None, project: str | None, as_json: bool) -> None:
    """Print the versions of a project, or of every project of a registry."""
    with plain_errors():
        registry = open_registry(url)
        projects = [project] if project else registry.projects()
        states = {name: (registry.active(name), registry.versions(name)) for name in projects}
    if as_json:
        report = {
            name: {"active": active, "versions": [asdict(version) for version in versions]}
            for name, (active, versions) in states.items()
        }
        click.echo(json.dumps({"registry": registry.url, "projects": report}, indent=2, ensure_ascii=False))
        return
    if not states:
        click.echo(f"No projects in {registry.url}.")
    for name, (active, versions) in states.items():
        click.echo(f"Project {name} in {registry.url}: {active or 'no version'} is active.")
        if versions:
            click.echo(f"  {'version':<32}{'status':<11}{'mask AP':>8}{'boundary':>10}  {'parent':<24}created")
        for version in versions:
            click.echo(_row(version, version.name == active))


def _row(version: VersionInfo, active: bool) -> str:
    figures = [_points(version.metrics.get(name)) for name in ("mask_ap", "boundary_ap")]
    head = f"{'*' if active else ' '} {version.name:<32}{version.status:<11}{figures[0]:>8}{figures[1]:>10}"
    return f"{head}  {version.parent or '-':<24}{version.created[:19]}"


def _points(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, int | float) else "-"


def show_version(url: str | None, project: str, name: str, papers: Path | None, as_json: bool) -> None:
    """Print what is known of a version; copy its card, report and pictures into a folder if one is given."""
    with plain_errors():
        registry = open_registry(url)
        version = registry.version(project, name)
        names = registry.papers(project, name)
        report = json.loads(registry.paper(project, name, "report.json") or b"{}")
        for paper in names if papers else ():
            target = Path(str(papers)) / paper
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(registry.paper(project, name, paper) or b"")
    facts = asdict(version) | {"active": registry.active(project) == name, "papers": names}
    if as_json:
        click.echo(json.dumps(facts | {"report": report}, indent=2, ensure_ascii=False))
        return
    for key, value in facts.items():
        click.echo(f"{key}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    for reason in report.get("reasons", ()):
        click.echo(f"- {reason}")


@click.command()
@click.argument("version")
@needed_project_option
@registry_option
@click.option("--force", is_flag=True, help="Promote a version that the gate rejected, too.")
def promote(version: str, project: str, registry_url: str | None, force: bool) -> None:
    """Make a version of the registry the one that serves; workers follow by themselves.

    \b
    Example: transfiner models promote round-3 --project 12
    """
    with plain_errors():
        registry = open_registry(registry_url)
        if registry.version(project, version).status == "rejected" and not force:
            click.echo(
                f"{version} was rejected by the gate (transfiner models show {version} --project {project} "
                "says why); add --force to promote it anyway.",
                err=True,
            )
            sys.exit(REFUSED)
        before = registry.active(project)
        registry.promote(project, version)
    click.echo(f"Project {project}: {version} is active{f', {before} was' if before not in (None, version) else ''}.")


@click.command()
@needed_project_option
@registry_option
def rollback(project: str, registry_url: str | None) -> None:
    """Make the version serve again that served before; the present one is retired.

    \b
    Example: transfiner models rollback --project 12
    """
    with plain_errors():
        registry = open_registry(registry_url)
        before = registry.active(project)
        after = registry.roll_back(project)
    click.echo(f"Project {project}: {after} is active again, {before} is retired.")


@click.command()
@needed_project_option
@registry_option
@click.option("--keep", type=click.IntRange(0), default=5, help="Newest versions that stay although they never served.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def gc(project: str, registry_url: str | None, keep: int, dry_run: bool, as_json: bool) -> None:
    """Remove old versions that never served. The active one, its history, the best and their ancestors stay.

    \b
    Example: transfiner models gc --project 12 --keep 3 --dry-run
    """
    with plain_errors():
        gone = open_registry(registry_url).collect_garbage(project, keep=keep, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({"removed": gone, "dry_run": dry_run}))
        return
    verb = "would go" if dry_run else "removed"
    click.echo("\n".join(f"{name} {verb}" for name in gone) or "Nothing to remove.")
