"""`transfiner models`: list, import, fetch and show checkpoints of this machine; versions of the registry."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from backend.cli.train.gate import compare_models
from backend.cli.types import (
    FILE,
    FOLDER,
    REFUSED,
    SuggestingGroup,
    json_option,
    open_registry,
    plain_errors,
    progress_bar,
    project_option,
    registry_option,
)
from backend.versions.store import DEFAULT_STORE, find_model, stored_models
from model.checkpoints.metadata import CONFIG_FILE, CheckpointError, read_metadata, verify_weights
from model.checkpoints.releases import RELEASES
from model.errors import require_model_libraries

if TYPE_CHECKING:
    from model.checkpoints.import_released import Import
    from training.registry import VersionInfo

#: Header of the table in a checkpoint's card, which the table of models quotes.
CARD_COLUMNS = ("knows", "AP", "milliseconds")
COLUMNS = ("model", "here", "knows", "MB", "AP", "milliseconds")
UNKNOWN = "-"

store_option = click.option("--store", type=FOLDER, default=DEFAULT_STORE, help="Folder of the imported checkpoints.")
classes_option = click.option("--classes", "classes_file", type=FILE, help="Class names in order, one a line.")
half_option = click.option("--half", is_flag=True, help="Store half precision: half the size.")
force_option = click.option("--force", is_flag=True, help="Replace a checkpoint of that name.")
needed_project_option = click.option(
    "--project", required=True, help="Whose versions: Label Studio's project id, or any name."
)


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """Import, fetch, list and show checkpoints; promote and roll back versions of the registry.

    Without a command: a table of what each model knows, its size, its AP and its milliseconds, from the models' cards.

    \b
    Example: transfiner models
    Example: transfiner models fetch R50-FPN-3x
    Example: transfiner models rollback --project 12
    """
    if context.invoked_subcommand is None:
        click.echo(table_text(model_table(DEFAULT_STORE)))


models.add_command(compare_models)


@models.command("import")
@click.argument("file", type=FILE)
@click.option("--name", help="Name of the checkpoint; the file's by default.")
@classes_option
@half_option
@force_option
@store_option
@json_option
def import_command(
    file: Path, name: str | None, classes_file: Path | None, half: bool, force: bool, store: Path, as_json: bool
) -> None:
    """Check an authors' .pth and store it as a checkpoint.

    \b
    Example: transfiner models import ~/Downloads/output_3x_transfiner_r50.pth --name r50
    """
    with plain_errors():
        name = name or file.stem
        if not name or name.startswith(".") or any(sign in name for sign in "/\\"):
            raise ValueError(f"--name is {name!r}, expected a name for a folder, without / or a dot in front")
        result = _import(file, store / name, classes_file, half, force, "")
    _report_import(result, as_json)


@models.command()
@click.argument("name")
@click.option("--url", help="Take the file from here instead of the authors' link.")
@classes_option
@half_option
@force_option
@click.option("--keep", is_flag=True, help="Keep the downloaded .pth beside the checkpoint.")
@store_option
@json_option
def fetch(
    name: str,
    url: str | None,
    classes_file: Path | None,
    half: bool,
    force: bool,
    keep: bool,
    store: Path,
    as_json: bool,
) -> None:
    """Download a released checkpoint and import it; run again to go on.

    \b
    Example: transfiner models fetch Swin-B-FPN-3x
    """
    with plain_errors():
        require_model_libraries()
        from model.checkpoints.download import download
        from model.checkpoints.releases import find_release

        release = find_release(name)
        directory = store / release.name
        if directory.exists() and not force:
            raise FileExistsError(f"{directory} exists already; add --force to fetch it again")
        file = store / "downloads" / f"{release.name}.pth"
        with progress_bar(release.name) as progress:
            download(url or release.url, file, progress)
        try:
            result = _import(file, directory, classes_file, half, force, url or release.url)
        except CheckpointError:
            # The download is not the expected file: the next try must not resume it.
            file.rename(file.with_suffix(".refused"))
            raise
        if not keep:
            file.unlink()
    _report_import(result, as_json)


@models.command("list")
@store_option
@registry_option
@project_option
@json_option
def list_command(store: Path, registry_url: str | None, project: str | None, as_json: bool) -> None:
    """List the checkpoints here and the released ones; with --project or --registry, versions of the registry.

    \b
    Example: transfiner models list --json
    Example: transfiner models list --project 12
    """
    if registry_url or project:
        list_versions(registry_url, project, as_json)
        return
    rows = [model.as_dict() for model in stored_models(store)]
    releases = [{"name": release.name, "figures": release.figures, "url": release.url} for release in RELEASES.values()]
    if as_json:
        click.echo(json.dumps({"stored": rows, "released": releases}, indent=2))
        return
    click.echo(table_text(model_table(store)))
    for row in rows:
        if row["problem"]:
            click.echo(f"{row['name']} cannot be used: {row['problem']}")


@models.command()
@click.argument("name")
@store_option
@registry_option
@project_option
@click.option(
    "--papers", type=FOLDER, help="With --project: copy the version's card, report and pictures into this folder."
)
@json_option
def show(
    name: str, store: Path, registry_url: str | None, project: str | None, papers: Path | None, as_json: bool
) -> None:
    """Show a checkpoint's metadata, after checking its weights' digest; with --project, a version of the registry.

    \b
    Example: transfiner models show scenes-small
    Example: transfiner models show round-3 --project 12
    """
    if project:
        show_version(registry_url, project, name, papers, as_json)
        return
    with plain_errors():
        directory = find_model(name, store)
        metadata = read_metadata(directory)
        weights = verify_weights(directory, metadata)
    facts: dict[str, Any] = {
        **metadata,
        "directory": str(directory),
        "config": str(directory / CONFIG_FILE),
        "bytes": weights.stat().st_size,
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for key, value in facts.items():
        click.echo(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


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
        rows = [_version_row(version, active) for version in versions]
        if rows:
            headings = ("version", "status", "mask AP", "boundary", "parent", "created")
            click.echo(tabulate(rows, headings, "plain", disable_numparse=True))


def _version_row(version: VersionInfo, active: str | None) -> list[str]:
    figures = [version.metrics.get(kind) for kind in ("mask_ap", "boundary_ap")]
    points = [f"{100 * figure:.1f}" if isinstance(figure, int | float) else "-" for figure in figures]
    mark = "* " if version.name == active else ""
    return [f"{mark}{version.name}", version.status, *points, version.parent or "-", version.created[:19]]


def show_version(url: str | None, project: str, name: str, papers: Path | None, as_json: bool) -> None:
    """Print a version's facts; copy its card, report and pictures into a folder if one is given."""
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


@models.command()
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
        earlier_version = registry.active(project)
        registry.promote(project, version)
    addition = f", {earlier_version} was" if earlier_version not in (None, version) else ""
    click.echo(f"Project {project}: {version} is active{addition}.")


@models.command()
@needed_project_option
@registry_option
def rollback(project: str, registry_url: str | None) -> None:
    """Make the version serve again that served before; the present one is retired.

    \b
    Example: transfiner models rollback --project 12
    """
    with plain_errors():
        registry = open_registry(registry_url)
        retired_version = registry.active(project)
        active_version = registry.roll_back(project)
    click.echo(f"Project {project}: {active_version} is active again, {retired_version} is retired.")


@models.command()
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
        removed_names = open_registry(registry_url).collect_garbage(project, keep=keep, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({"removed": removed_names, "dry_run": dry_run}))
        return
    verb = "would go" if dry_run else "removed"
    click.echo("\n".join(f"{name} {verb}" for name in removed_names) or "Nothing to remove.")


def _import(file: Path, directory: Path, classes_file: Path | None, half: bool, force: bool, source: str) -> Import:
    require_model_libraries()
    from model.checkpoints.import_released import import_released

    classes = None
    if classes_file:
        lines = classes_file.read_text(encoding="utf-8").splitlines()
        classes = [line.strip() for line in lines if line.strip()]
    return import_released(
        file, directory, name=directory.name, classes=classes, half=half, overwrite=force, source=source
    )


def _report_import(result: Import, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"directory": str(result.directory), "metadata": result.metadata}, ensure_ascii=False))
        return
    click.echo(f"{result.directory}: {result.config}, {len(result.metadata['classes'])} classes")
    click.echo(f"sha256 of the file: {result.metadata['source']['sha256']}")
    if result.report.absent_training_only:
        click.echo(result.report.describe())
    click.echo(f"Use it: transfiner serve --model {result.directory}")


def card_facts(directory: Path) -> dict[str, str]:
    """The row under the header `| knows | AP | milliseconds |` of a checkpoint's card; {} where there is none."""
    card = directory / "MODEL_CARD.md"
    rows = [_cells(line) for line in card.read_text(encoding="utf-8").splitlines()] if card.is_file() else []
    for number, row in enumerate(rows[:-2]):
        if row == list(CARD_COLUMNS):
            return dict(zip(CARD_COLUMNS, rows[number + 2], strict=True))
    return {}


def model_table(store: Path) -> list[dict[str, str]]:
    """A row a model, those on this machine first, then those that `transfiner models fetch` downloads."""
    rows = []
    for model in stored_models(store):
        facts = model.as_dict()
        knows = {"knows": _class_list(facts["classes"]), "AP": UNKNOWN, "milliseconds": UNKNOWN}
        size = {"MB": f"{facts['bytes'] / 1e6:.1f}" if facts["bytes"] else UNKNOWN}
        rows.append({"model": facts["name"], "here": "yes", **knows, **size, **card_facts(model.directory)})
    local_names = {row["model"] for row in rows}
    for release in RELEASES.values():
        if release.name not in local_names:
            facts = {"knows": release.knows, "MB": UNKNOWN, "AP": release.figures, "milliseconds": UNKNOWN}
            rows.append({"model": release.name, "here": "fetch", **facts})
    return rows


def table_text(rows: list[dict[str, str]]) -> str:
    """Format the rows as a table."""
    return tabulate([[row[column] for column in COLUMNS] for row in rows], COLUMNS, disable_numparse=True)


def _class_list(classes: list[str]) -> str:
    first_classes = ", ".join(classes[:4])
    return first_classes if len(classes) <= 4 else f"{first_classes} and {len(classes) - 4} more"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
