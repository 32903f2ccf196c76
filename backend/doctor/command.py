"""The `doctor` command: finds what is wrong and says the fix."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import click

from backend.doctor.label_studio import connection_findings
from backend.doctor.machine import Finding, local_findings
from backend.errors import ServiceError
from backend.processes.running_service import load_settings_of_running
from backend.settings import Settings
from backend.versions.resolve import ServedModel, read_served_model
from integration.label_studio.client import ClientError, LabelStudioClient

MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "error": ("FAIL", "red"), "skipped": ("skip", "blue")}


@click.command()
@click.option("--fix", is_flag=True, help="Repair what Label Studio's API can repair.")
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
@click.option("--label-studio-url", help="Address of Label Studio (LABEL_STUDIO_URL).")
@click.option("--redis-url", help="Queue server (TRANSFINER_REDIS_URL).")
@click.option("--port", type=int, help="Port of our API (TRANSFINER_PORT).")
def doctor(fix: bool, as_json: bool, **options: Any) -> None:
    """Check environment, model, queue and Label Studio; say the fix for each problem.

    Exit code 1 when something must be fixed.

    \b
    Example: transfiner doctor --label-studio-url http://localhost:8080
    """
    findings = _examine(load_settings_of_running(**options))
    if fix:
        findings = [_repaired(finding) for finding in findings]
    click.echo(_json(findings) if as_json else "\n".join(_line(finding) for finding in findings))
    sys.exit(1 if any(finding.status == "error" for finding in findings) else 0)


def _examine(settings: Settings) -> list[Finding]:
    findings = list(local_findings(settings))
    if not settings.label_studio_url:
        hint = "Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY to check the connection as well."
        return [*findings, Finding("label studio", "skipped", hint)]
    key = settings.label_studio_api_key.get_secret_value()
    client = LabelStudioClient(settings.label_studio_url, key, timeout_s=10, retries=0)
    try:
        findings += connection_findings(settings, client, _model(settings))
    except ClientError as error:
        findings.append(Finding("label studio", "error", str(error), error.fix))
    return findings


def _model(settings: Settings) -> ServedModel | None:
    try:
        return read_served_model(settings.model)
    except ServiceError:
        return None


def _repaired(finding: Finding) -> Finding:
    if finding.repair is None:
        return finding
    try:
        finding.repair()
    except ClientError as error:
        return dataclasses.replace(finding, status="error", detail=f"{finding.detail} Not repaired: {error}")
    return dataclasses.replace(finding, status="ok", detail=f"{finding.detail} Repaired.", fix="", repair=None)


def _line(finding: Finding) -> str:
    mark, colour = MARKS[finding.status]
    fix = f"\n      Fix: {finding.fix}" if finding.fix else ""
    return f"{click.style(f'{mark:4}', fg=colour)}  {finding.name}: {finding.detail}{fix}"


def _json(findings: list[Finding]) -> str:
    rows = [
        {"name": f.name, "status": f.status, "detail": f.detail, "fix": f.fix, "fixable": f.repair is not None}
        for f in findings
    ]
    return json.dumps(rows, indent=2)
