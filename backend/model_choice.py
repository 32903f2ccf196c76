"""Which checkpoint directory serves a project. The API and the workers ask here, so that they agree.

An operator's TRANSFINER_PROJECT_MODELS wins over what the learning loop promoted, which wins over TRANSFINER_MODEL.
"""

from __future__ import annotations

from pathlib import Path

from backend.active_models import active_directory, active_model, version_directory
from backend.served_model import ServedModel, read_served_model
from backend.settings import Settings

__all__ = ["model_directory", "served_model", "version_directory"]


def model_directory(settings: Settings, project_key: str) -> Path:
    """The directory of the model that a project is predicted with.

    Args:
        project_key: Label Studio's "<id>.<created>"; "" for clients without a project.

    Raises:
        ModelUnavailableError: the active version cannot be had from the registry.
    """
    project_id = project_key.partition(".")[0]
    pinned = settings.models_of_projects().get(project_id) if project_id else None
    return pinned or active_directory(settings, project_key) or settings.model


def served_model(settings: Settings, project_key: str) -> ServedModel:
    """The same for the API, which needs names only and must answer /setup within 3 s: it downloads no weights.

    Raises:
        ModelUnavailableError: there is no model, or the registry does not answer.
    """
    project_id = project_key.partition(".")[0]
    pinned = settings.models_of_projects().get(project_id) if project_id else None
    active = None if pinned else active_model(settings, project_key)
    return active or read_served_model(pinned or settings.model)
