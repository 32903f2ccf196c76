"""The `doctor` command: problems on this machine and in Label Studio, each with its fix.

On this machine: settings, libraries, model, device, queue server, workers, API. In Label Studio: address, key,
backends, labels and webhooks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import ipaddress
import json
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import click
import requests
from redis import Redis, RedisError

from backend.doctor.connection import Finding, connection_changes, is_ours
from backend.errors import ServiceError
from backend.processes.embedded_redis import binary
from backend.processes.running_service import load_settings_of_running
from backend.queue.recovery import living_workers
from backend.settings import Settings, local_url, unknown_variables
from backend.versions.resolve import ServedModel, model_directory, read_served_model
from integration.label_studio.client import ClientError, LabelStudioClient, is_personal_access_token
from integration.label_studio.label_config import parse_label_config
from integration.label_studio.notice import is_notice
from model.checkpoints.metadata import WEIGHTS_FILE, file_digest
from model.errors import MissingRequirementError, require_model_libraries

Json = dict[str, Any]
LIBRARIES = ("torch", "torchvision", "flask", "waitress", "rq", "redis")


def local_findings(settings: Settings) -> Iterator[Finding]:
    """Run all checks that need no Label Studio."""
    yield Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
    for name, close in unknown_variables().items():
        fix = f"Did you mean {close}?" if close else "Unset it."
        yield Finding("settings", "warning", f"Nobody reads the variable {name}.", fix)
    yield _libraries()
    yield _model(settings)
    yield _device(settings)
    yield from _queue(settings)
    yield _api(settings)


def _libraries() -> Finding:
    try:
        require_model_libraries()
    except MissingRequirementError as error:
        return Finding("libraries", "error", str(error), "Run `make setup`.")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return Finding("libraries", "ok", versions)


def _model(settings: Settings) -> Finding:
    try:
        model = read_served_model(settings.model)
        weights = settings.model / WEIGHTS_FILE
        digest = file_digest(weights)
    except ServiceError as error:
        return Finding("model", "error", error.error, error.hint)
    except OSError as error:
        return Finding("model", "error", f"The weights cannot be read: {error}.", "Import or fetch the model again.")
    if model.digest and digest != model.digest:
        return Finding(
            "model",
            "error",
            f"{weights} is not what {model.version} recorded (sha256 {digest[:12]}...).",
            "The file is damaged or replaced; import or fetch the model again.",
        )
    return Finding("model", "ok", f"{model.version} with {len(model.labels)} classes: {', '.join(model.labels[:8])}")


def _device(settings: Settings) -> Finding:
    try:
        import torch

        from model.inference.predictor import choose_device

        device = choose_device(settings.device)
    except (ImportError, OSError) as error:
        return Finding("device", "skipped", f"torch cannot be imported ({error})")
    except ValueError as error:
        return Finding("device", "error", str(error), "Correct TRANSFINER_DEVICE.")
    if device.type == "cuda":
        return Finding("device", "ok", f"{torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} GPU(s)")
    return Finding("device", "ok", f"CPU with {torch.get_num_threads()} thread(s); a GPU is many times faster")


def _queue(settings: Settings) -> Iterator[Finding]:
    if not settings.redis_url:
        try:
            yield Finding("queue server", "ok", f"`serve` starts its own: {binary().name}")
        except ServiceError as error:
            yield Finding("queue server", "error", error.error, error.hint)
        return
    try:
        with Redis.from_url(settings.redis_url, socket_timeout=3, socket_connect_timeout=3) as connection:
            connection.ping()
            workers = living_workers(connection)
    except RedisError as error:
        fix = "Start it, or correct TRANSFINER_REDIS_URL; empty, `serve` starts an embedded one."
        yield Finding("queue server", "error", f"It does not answer: {type(error).__name__}.", fix)
        return
    yield Finding("queue server", "ok", "It answers.")
    versions = sorted({str(facts.get("version")) for facts in workers.values()})
    if workers:
        yield Finding("workers", "ok", f"{len(workers)} alive, serving {', '.join(versions)}")
    else:
        yield Finding("workers", "warning", "None is alive.", "Start `transfiner worker` or `transfiner serve`.")


def _api(settings: Settings) -> Finding:
    url = f"{local_url(settings.host, settings.port)}/health"
    try:
        facts = requests.get(url, timeout=2).json()
    except (requests.RequestException, ValueError):
        return Finding("api", "skipped", f"Nothing of ours answers at {url}; start it with `transfiner serve`.")
    return Finding("api", "ok", f"{facts.get('model_class', 'something')} answers at {url}")


def connection_findings(settings: Settings, client: LabelStudioClient) -> Iterator[Finding]:
    """Check the server, the key, every connected backend and every webhook; stop if the server or the key fails."""
    try:
        client.health()
    except ClientError as error:
        fix = "Correct LABEL_STUDIO_URL: the address of Label Studio as seen from this machine."
        yield Finding("label studio", "error", f"{settings.label_studio_url} does not answer: {error}", fix)
        return
    yield Finding("label studio", "ok", f"{settings.label_studio_url} answers.")
    key = _key(settings, client)
    yield key
    if key.status == "error":
        return
    projects = client.list_projects()
    backends = [backend for project in projects for backend in client.list_backends(project["id"])]
    if not backends:
        yield Finding(
            "backends",
            "warning",
            f"No ML backend is connected in {len(projects)} project(s).",
            "Connect ours in the project's settings under Model.",
        )
    for backend in backends:
        yield from _backend(backend, _served(settings, backend))
    hooks = {hook["id"]: hook for project in projects for hook in client.list_webhooks(project["id"])}
    for project in projects:
        ours = [backend for backend in backends if backend["project"] == project["id"] and is_ours(backend)]
        model = _served(settings, ours[0]) if ours else None
        if model is not None:
            yield from _labels(project, model)
            yield from connection_changes(settings, client, project, ours, hooks.values(), model)
    yield from _webhooks(list(hooks.values()), backends, client)


def _served(settings: Settings, backend: Json) -> ServedModel | None:
    """The model that serves a backend's project: its promoted version, else the model of the settings."""
    for directory in (lambda: model_directory(settings, str(backend["project"])), lambda: settings.model):
        with contextlib.suppress(ServiceError):
            return read_served_model(directory())
    return None


def _key(settings: Settings, client: LabelStudioClient) -> Finding:
    key = settings.label_studio_api_key.get_secret_value()
    kind = "personal access token" if is_personal_access_token(key) else "legacy token"
    if not key:
        return Finding(
            "api key",
            "error",
            "There is none.",
            "Create a personal access token in Label Studio (Account & Settings) and set LABEL_STUDIO_API_KEY.",
        )
    try:
        user = client.whoami()
    except ClientError as error:
        fix = error.fix
        if kind == "legacy token":
            fix = "Legacy tokens are off in new organizations: use a personal access token, or allow legacy ones."
        return Finding("api key", "error", f"The {kind} is refused: {error}", fix)
    return Finding("api key", "ok", f"The {kind} of {user.get('email', '?')} is accepted.")


def _backend(backend: Json, model: ServedModel | None) -> Iterator[Finding]:
    name = f"backend {backend['title']!r} of project {backend['project']}"
    if backend["state"] == "CO":
        yield Finding(name, "ok", f"{backend['url']} is connected, version {backend.get('model_version')}.")
        version = backend.get("model_version")
        if model and is_ours(backend) and not is_notice(version) and version not in (None, model.version):
            fix = "Restart the service with the same TRANSFINER_MODEL everywhere."
            detail = f"Label Studio knows version {backend['model_version']}, here is {model.version}."
            yield Finding(name, "warning", detail, fix)
        return
    if is_ours(backend) and _is_private(backend["url"]):
        yield Finding(
            name,
            "error",
            f"Label Studio says {backend['state']}, yet {backend['url']} answers from here and its address is private.",
            "Since 1.23 Label Studio blocks private addresses: start it with ML_BLOCK_LOCAL_IP=false "
            "(predictions) and SSRF_PROTECTION_ENABLED=false (webhook events; blocked ones leave only a log line).",
        )
        return
    reason = backend.get("error_message") or "no reason given"
    fix = "Start the service, and use an address that Label Studio's machine or container can reach (not localhost)."
    yield Finding(name, "error", f"{backend['url']} is {backend['state']}: {reason}", fix)


def _labels(project: Json, model: ServedModel) -> Iterator[Finding]:
    """Whether the model that serves a project knows its labels."""
    xml = str(project.get("label_config") or "")
    if not xml:
        return
    config = parse_label_config(xml)
    name = f"labels of project {project['id']}"
    if config.reason:
        yield Finding(name, "error", config.reason, "Correct the project's labeling setup; the README has one to copy.")
        return
    match = config.match(model.labels)
    unknown = ", ".join(match.unmatched_labels)
    if not unknown:
        yield Finding(name, "ok", f"{model.version} knows all of them.")
        return
    fix = (
        "Annotate about 10 images with them and press Start Training, or give a class's name in a label's "
        "predicted_values."
    )
    yield Finding(name, "warning", f"{model.version} does not know: {unknown}. They are not outlined.", fix)


def _webhooks(hooks: Sequence[Json], backends: Sequence[Json], client: LabelStudioClient) -> Iterator[Finding]:
    """Find webhooks whose backend was removed. Only ours can be switched off: others may be somebody's own."""
    backend_hooks = {(backend["project"], backend["url"].rstrip("/") + "/webhook") for backend in backends}
    for hook in hooks:
        is_known = not hook["url"].endswith("/webhook") or (hook["project"], hook["url"]) in backend_hooks
        if is_known or hook.get("is_active") is False:
            continue
        can_end = is_ours({"url": hook["url"].removesuffix("/webhook")})
        fix = "Remove it under Settings > Webhooks; a removed backend leaves its webhook behind"
        yield Finding(
            f"webhook {hook['id']} of project {hook['project']}",
            "warning",
            f"{hook['url']} belongs to no connected backend.",
            f"{fix} (`transfiner doctor --fix` switches it off)." if can_end else f"{fix}.",
            functools.partial(client.update_webhook, hook, is_active=False) if can_end else None,
        )


def _is_private(url: str) -> bool:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(urlsplit(url).hostname, None)}
    except OSError:
        return False
    return any(not ipaddress.ip_address(str(address).partition("%")[0]).is_global for address in addresses)


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
        findings = [_repair(finding) for finding in findings]
    fields = ("name", "status", "detail", "fix")
    rows = [{**{key: getattr(f, key) for key in fields}, "fixable": f.repair is not None} for f in findings]
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(_line(finding) for finding in findings))
    sys.exit(1 if any(finding.status == "error" for finding in findings) else 0)


def _examine(settings: Settings) -> list[Finding]:
    findings = list(local_findings(settings))
    if not settings.label_studio_url:
        hint = "Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY to check the connection as well."
        return [*findings, Finding("label studio", "skipped", hint)]
    key = settings.label_studio_api_key.get_secret_value()
    client = LabelStudioClient(settings.label_studio_url, key, timeout_s=10, retries=0)
    try:
        findings += connection_findings(settings, client)
    except ClientError as error:
        findings.append(Finding("label studio", "error", str(error), error.fix))
    return findings


def _repair(finding: Finding) -> Finding:
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
