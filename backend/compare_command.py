"""`transfiner models compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from backend import judging_options as options
from backend.registry_commands import json_option, project_option, registry_option, said_plainly


@click.command()
@click.argument("before")
@click.argument("after")
@click.option(
    "--holdout", help="Snapshot directory or digest to measure both on; the project's newest by default."
)
@click.option("--recorded", is_flag=True, help="Measure nothing: show the figures kept with both versions.")
@project_option
@registry_option
@options.cache_option
@options.rule_option
@options.device_option
@options.out_option
@json_option
def compare(
    before: str, after: str, holdout: str | None, recorded: bool, project: str | None, registry_url: str | None,
    cache: Path | None, rules: tuple[tuple[str, str], ...], device: str, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure two models on the same hold-out, with intervals; changes nothing.

    Models are checkpoint directories, or versions with --project.

    \b
    Example: transfiner models compare round-2 round-3 --project 12
    """
    with said_plainly():
        where = options.places(project, registry_url, cache)
        if recorded:
            _show_recorded(where, before, after, as_json)
            return
        from training.gate import judge

        verdict = judge(
            where.model(after), where.model(before), None, where.snapshot(holdout),
            rules=options.gate_rules(rules), detect=options.detector(device), out=out,
        )  # fmt: skip
    click.echo(json.dumps(verdict.as_dict(), ensure_ascii=False) if as_json else verdict.table())


def _show_recorded(where: options.Places, before: str, after: str, as_json: bool) -> None:
    if where.registry is None or where.project is None:
        raise click.UsageError("--recorded shows what the registry keeps; give --project")
    both = [where.registry.version(where.project, name).as_dict() for name in (before, after)]
    if as_json:
        click.echo(json.dumps(both, indent=2, ensure_ascii=False))
        return
    for key in both[0]:
        left, right = (_text(one[key]) for one in both)
        mark = "  " if left == right else "! "
        click.echo(f"{mark}{key:<16}{left:<44} {right}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)[:42] or "-"
