"""The settings that a Label Studio project needs for our backend, and the changes that make them.

`transfiner doctor` lists the changes and makes them with `--fix`; the watcher of a project makes them by itself when
the project is connected, and keeps the title up to date later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import requests

from backend.settings import Settings
from backend.versions.resolve import ServedModel, has_smart_tools, project_notice, prompt_version
from integration.label_studio.client import LabelStudioClient
from integration.label_studio.notice import is_notice

Json = dict[str, Any]
# The label stream begins with the tasks that the model is least sure of.
SAMPLING = "Uncertainty sampling"
SECRET_HEADER = "X-Transfiner-Secret"


@dataclass(frozen=True)
class Finding:
    """The result of one check of `transfiner doctor`.

    Attributes:
        repair: makes the fix, where an API can (`doctor --fix`).
    """

    name: str
    status: Literal["ok", "warning", "error", "skipped"]
    detail: str
    fix: str = ""
    repair: Callable[[], object] | None = None


@dataclass(frozen=True)
class Change(Finding):
    """A setting of Label Studio that should be changed; `repair` changes it, where the API can.

    Attributes:
        kind: title, sampling, smart tools or webhook.
        message: for people, once it is changed: what was set.
        title: the backend's new title; "" for other kinds.
    """

    kind: str = ""
    message: str = ""
    title: str = ""


@dataclass(frozen=True)
class ConnectionUpdate:
    """Changes that were made in a project.

    Attributes:
        is_connected: whether our backend is connected to it.
        is_first: whether a person had connected it just before.
        title: the backend's new title; "" when it has not changed. project: title of the project.
        messages: everything that was set, for people.
    """

    is_connected: bool = False
    is_first: bool = False
    title: str = ""
    project: str = ""
    messages: tuple[str, ...] = ()


def is_ours(backend: Json) -> bool:
    """Whether a connected backend is a service of this project; with basic auth it may answer 401 for its name."""
    try:
        answer = requests.get(f"{backend['url'].rstrip('/')}/health", timeout=2)
    except requests.RequestException:
        return False
    return answer.status_code == 401 or "MaskTransfiner" in answer.text


def connection_changes(
    settings: Settings,
    client: LabelStudioClient,
    project: Json,
    backends: Sequence[Json],
    hooks: Iterable[Json],
    model: ServedModel,
) -> Iterator[Change]:
    """Yield the settings of a project that should be changed."""
    xml = str(project.get("label_config") or "")
    # The reason why nothing is outlined, else the model version: Label Studio orders tasks by the scores of the version
    # that the project names, which is the backend's title.
    title = (project_notice(settings, xml, model) if xml else "") or model.version
    hooks = list(hooks)
    for backend in backends:
        if backend["title"] != title:
            yield _title(client, backend, title)
        needs_tools = has_smart_tools(xml) and prompt_version(settings)
        if needs_tools and backend.get("is_interactive") is False:
            yield _smart_tools(client, backend, title)
        yield from _webhook(settings, client, project, backend, hooks)
    if backends and project.get("sampling", SAMPLING) != SAMPLING:
        yield _sampling(client, project)


def is_first_connection(backends: Sequence[Json], versions: Iterable[str]) -> bool:
    """Whether a person chose our backend's title (no version, no notice), so that nothing was set by us before."""
    version_names = set(versions)
    return any(backend["title"] not in version_names and not is_notice(backend["title"]) for backend in backends)


def _title(client: LabelStudioClient, backend: Json, title: str) -> Change:
    meaning = "is the model version, by whose scores tasks are ordered"
    message = "the model version as the backend's title"
    if is_notice(title):
        meaning, message = "says why nothing is outlined", "the sentence as the backend's title"
    return Change(
        f"title of backend {backend['title']!r}",
        "warning",
        f"The title of the backend should be {title!r}, which {meaning}.",
        "Rename the backend (`transfiner doctor --fix` does).",
        lambda: client.update_backend(backend, title=title),
        kind="title",
        message=message,
        title=title,
    )


def _smart_tools(client: LabelStudioClient, backend: Json, title: str) -> Change:
    return Change(
        f"smart tools of project {backend['project']}",
        "warning",
        "The label config has smart tools, but the backend is not used for them.",
        "Switch on `Use for interactive preannotations` of the backend (`transfiner doctor --fix` does).",
        lambda: client.update_backend(backend, title=title, is_interactive=True),
        kind="smart tools",
        message="interactive preannotations for smart tools",
    )


def _sampling(client: LabelStudioClient, project: Json) -> Change:
    return Change(
        f"sampling of project {project['id']}",
        "warning",
        f"Tasks come by {str(project['sampling'])!r}, not those first that the model is least sure of.",
        f"Set Settings > General > Task Sampling to {SAMPLING!r} (`transfiner doctor --fix` does).",
        lambda: client.update_project(project["id"], sampling=SAMPLING),
        kind="sampling",
        message="tasks in the order of uncertainty",
    )


def _webhook(
    settings: Settings, client: LabelStudioClient, project: Json, backend: Json, hooks: Sequence[Json]
) -> Iterator[Change]:
    """Check the backend's webhook. Label Studio adds one with each backend; it may be gone, and has no basic auth."""
    url = backend["url"].rstrip("/") + "/webhook"
    secret = settings.webhook_secret.get_secret_value()
    headers = {SECRET_HEADER: secret} if secret else {}
    own_hooks = [hook for hook in hooks if hook["url"] == url and hook["project"] == backend["project"]]
    active = [hook for hook in own_hooks if hook.get("is_active") is not False]
    if not active:
        yield Change(
            f"webhook of project {project['id']}",
            "warning",
            f"No webhook tells {url} of new annotations; they are looked for once in "
            f"{settings.learning_check_s:.0f} s all the same.",
            "Connect the backend again, or add it under Settings > Webhooks (`transfiner doctor --fix` does).",
            lambda: client.create_webhook(project["id"], url, headers=headers),
            kind="webhook",
            message="a webhook for annotations",
        )
    for hook in active:
        if settings.basic_auth_user and not hook.get("headers"):
            yield Change(
                f"webhook {hook['id']} of project {hook['project']}",
                "error",
                "It sends no credentials, so its events are refused with 401 and lost without a word.",
                "Give it our secret as a header (`transfiner doctor --fix` does)."
                if secret
                else "Set TRANSFINER_WEBHOOK_SECRET and run `transfiner doctor --fix`.",
                functools.partial(client.update_webhook, hook, headers=headers) if secret else None,
                kind="webhook",
                message="our secret for the webhook",
            )
