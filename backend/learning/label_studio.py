"""The project's Label Studio: what is new, the snapshot, and after a promotion the version that it shows.

Label Studio orders tasks by the scores of the version that the project names, and the project names the backend's
title. So the title follows the version.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from redis import Redis

from backend.doctor.label_studio import is_ours
from backend.errors import ServiceError
from backend.learning.learner import ProjectClient
from backend.learning.repredict import Repredictor
from backend.learning.triggers import count_new_annotations
from backend.predictions.projects import Project, Projects
from backend.settings import Settings
from backend.worker.images import ImageSource, label_studio_of
from integration.label_studio.client import LabelStudioClient

log = logging.getLogger(__name__)
Json = dict[str, Any]


class BackendClient(Protocol):
    """The part of integration.label_studio.client.LabelStudioClient that `follow_version` uses."""

    def list_backends(self, project_id: int) -> list[Json]: ...

    def update_backend(self, backend: Mapping[str, Any], **fields: object) -> Any: ...


def connect(settings: Settings, project: Project) -> LabelStudioClient:
    """A client for the project's Label Studio.

    Raises:
        ServiceError: nobody ever told where it is.
    """
    url, key = label_studio_of(settings, project)
    if not url:
        raise ServiceError(
            f"Where the Label Studio of project {project.id or '?'} is, is not known.",
            "Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, or connect the backend in the project first.",
        )
    return LabelStudioClient(url, key, timeout_s=settings.label_studio_timeout_s)


def project_of(projects: Projects, project_id: str) -> Project:
    """What /setup said about a project, by its id; an empty one when it never did."""
    named = [project for project in projects.all() if project.id == project_id]
    return max(named, key=lambda project: project.seen_at, default=Project(key=project_id))


def follow_version(
    client: BackendClient, project_id: int, version: str, *, ours: Callable[[Json], bool] = is_ours
) -> bool:
    """Give our backend of a project the version as its title; whether anything had to be changed.

    Raises:
        ClientError: Label Studio does not answer.
    """
    backends = client.list_backends(project_id)
    mine = backends if len(backends) == 1 else [backend for backend in backends if ours(backend)]
    late = [backend for backend in mine if backend["title"] != version]
    for backend in late:
        client.update_backend(backend, title=version)
        log.info("project %d: backend %r is called %r now", project_id, backend["title"], version)
    return bool(late)


@dataclass(frozen=True)
class LabelStudioProject:
    """The functions of `ProjectClient` on a real server."""

    settings: Settings
    connection: Redis

    def side(self) -> ProjectClient:
        return ProjectClient(self.count_new, self.take_snapshot, self.follow)

    def count_new(self, project: str, newest_at: str) -> int:
        return count_new_annotations(self._client(project), int(project), newest_at)

    def take_snapshot(self, project: str, folder: Path) -> Path:
        # Not at the top: the worker that waits for a training needs no arrays.
        from backend.learning.snapshot.builder import SnapshotSettings
        from backend.learning.snapshot.take import take_snapshot

        fetcher = ImageSource(self.settings, Projects(self.connection)).fetcher(self._known(project))
        wanted = SnapshotSettings(
            choice=self.settings.annotators,
            holdout_share=self.settings.holdout_share,
            max_pixels=int(self.settings.max_image_megapixels * 1e6),
        )
        return take_snapshot(self._client(project), project, fetcher.fetch_bytes, folder, settings=wanted)

    def follow(self, project: str, version: str) -> str:
        """Title first: only then does Label Studio show what is pushed under the version."""
        client = self._client(project)
        if not follow_version(client, int(project), version):
            return ""
        said = f"The backend is called {version} now."
        if not self.settings.repredict:
            return said
        count = Repredictor(self.settings, self.connection).run(self._known(project), client, version)
        return f"{said} {count} task(s) without annotation are predicted anew."

    def _known(self, project: str) -> Project:
        return project_of(Projects(self.connection), project)

    def _client(self, project: str) -> LabelStudioClient:
        return connect(self.settings, self._known(project))
