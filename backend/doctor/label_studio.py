"""What `transfiner doctor` looks at in Label Studio: the traps between it and an ML backend, each with its fix."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from backend.doctor.connection import connection_changes
from backend.doctor.machine import Finding
from backend.errors import ServiceError
from backend.settings import Settings
from backend.versions.resolve import ServedModel, model_directory, read_served_model
from integration.label_studio.client import ClientError, LabelStudioClient, is_personal_access_token
from integration.label_studio.label_config import parse_label_config
from integration.label_studio.notice import is_notice

Json = dict[str, Any]


def connection_findings(settings: Settings, client: LabelStudioClient, model: ServedModel | None) -> Iterator[Finding]:
    """Look at the server, the key, every connected backend and every webhook; later ones only if the first are well."""
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
        yield from _backend(backend, _served(settings, backend, model))
    hooks = {hook["id"]: hook for project in projects for hook in client.list_webhooks(project["id"])}
    for project in projects:
        ours = [backend for backend in backends if backend["project"] == project["id"] and is_ours(backend)]
        served = _served(settings, ours[0], model) if ours else None
        if served is not None:
            yield from _labels(project, served)
            yield from connection_changes(settings, client, project, ours, hooks.values(), served)
    yield from _webhooks(list(hooks.values()), backends, client)


def _served(settings: Settings, backend: Json, model: ServedModel | None) -> ServedModel | None:
    """What a backend's project is served with: its promoted version, else the model of the settings."""
    try:
        return read_served_model(model_directory(settings, str(backend["project"])))
    except ServiceError:
        return model


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
        who = client.whoami()
    except ClientError as error:
        fix = error.fix
        if kind == "legacy token":
            fix = "Legacy tokens are off in new organizations: use a personal access token, or allow legacy ones."
        return Finding("api key", "error", f"The {kind} is refused: {error}", fix)
    return Finding("api key", "ok", f"The {kind} of {who.get('email', '?')} is accepted.")


def _backend(backend: Json, model: ServedModel | None) -> Iterator[Finding]:
    name = f"backend {backend['title']!r} of project {backend['project']}"
    if backend["state"] == "CO":
        yield Finding(name, "ok", f"{backend['url']} is connected, version {backend.get('model_version')}.")
        known = backend.get("model_version")
        if model and is_ours(backend) and not is_notice(known) and known not in (None, model.version):
            fix = "Restart the service with the same TRANSFINER_MODEL everywhere."
            detail = f"Label Studio knows version {backend['model_version']}, here is {model.version}."
            yield Finding(name, "warning", detail, fix)
        return
    if _answers(backend["url"]) and _is_private(backend["url"]):
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


def _labels(project: Json, served: ServedModel) -> Iterator[Finding]:
    """Whether the model that serves a project knows its labels."""
    xml = str(project.get("label_config") or "")
    if not xml:
        return
    config = parse_label_config(xml)
    name = f"labels of project {project['id']}"
    if config.reason:
        yield Finding(name, "error", config.reason, "Correct the project's labeling setup; the README has one to copy.")
        return
    matched = config.match(served.labels)
    unknown = ", ".join(matched.unmatched_labels)
    if not unknown:
        yield Finding(name, "ok", f"{served.version} knows all of them.")
        return
    fix = (
        "Annotate about 10 images with them and press Start Training, or give a class's name in a label's "
        "predicted_values."
    )
    yield Finding(name, "warning", f"{served.version} does not know: {unknown}. They are not outlined.", fix)


def _webhooks(hooks: Sequence[Json], backends: Sequence[Json], client: LabelStudioClient) -> Iterator[Finding]:
    """Webhooks outlive their backend."""
    wanted = {(backend["project"], backend["url"].rstrip("/") + "/webhook") for backend in backends}
    for hook in hooks:
        if not hook["url"].endswith("/webhook") or hook.get("is_active") is False:
            continue
        name = f"webhook {hook['id']} of project {hook['project']}"
        if (hook["project"], hook["url"]) not in wanted:
            yield _left_behind(hook, name, client)


def _left_behind(hook: Json, name: str, client: LabelStudioClient) -> Finding:
    """Switched off only when it is ours: somebody's own service may have an address like that."""
    is_ours = _answers(hook["url"].removesuffix("/webhook"))
    fix = "Remove it under Settings > Webhooks; a removed backend leaves its webhook behind"
    return Finding(
        name,
        "warning",
        f"{hook['url']} belongs to no connected backend.",
        f"{fix} (`transfiner doctor --fix` switches it off)." if is_ours else f"{fix}.",
        (lambda: client.update_webhook(hook, is_active=False)) if is_ours else None,
    )


def is_ours(backend: Json) -> bool:
    """Whether a connected backend is a service of this project."""
    return _answers(backend["url"])


def _answers(url: str) -> bool:
    """Whether it is a service of ours; with basic auth set it may answer 401 instead of its name."""
    try:
        answer = requests.get(f"{url.rstrip('/')}/health", timeout=2)
    except requests.RequestException:
        return False
    return answer.status_code == 401 or "MaskTransfiner" in answer.text


def _is_private(url: str) -> bool:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(urlsplit(url).hostname, None)}
    except OSError:
        return False
    return any(not ipaddress.ip_address(str(address).partition("%")[0]).is_global for address in addresses)
