"""What the API needs to know about the model, read from the checkpoint directory without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from backend.errors import ModelUnavailableError
from backend.settings import Settings


@dataclass(frozen=True)
class ServedModel:
    """Identity of a checkpoint directory.

    Attributes:
        version: what Label Studio stores as model_version.
        labels: class names, in the order of the model's outputs.
        digest: sha256 of the weights.
        node_budget: most nodes of an image to refine when it serves, 0 for all; None: what its configuration says.
    """

    directory: Path
    name: str
    version: str
    labels: tuple[str, ...]
    digest: str
    node_budget: int | None = field(default=None, compare=False)


def node_budget_of(served: ServedModel, wished: int) -> int | None:
    """Node budget for `model.predictor.Predictor`: of the settings, or with -1 what is best for the model."""
    return served.node_budget if wished < 0 else wished


def read_served_model(directory: Path) -> ServedModel:
    """Read `metadata.json` of a checkpoint directory.

    Raises:
        ModelUnavailableError: no such directory, or one that is not a checkpoint.
    """
    path = directory / "metadata.json"
    hint = "Set TRANSFINER_MODEL to a checkpoint directory (`transfiner models list` shows those there are)."
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        budget = facts.get("served", {}).get("node_budget")
        return ServedModel(
            directory=directory,
            name=str(facts["name"]),
            version=str(facts["version"]),
            labels=tuple(str(label) for label in facts["classes"]),
            digest=str(facts.get("digest", "")),
            node_budget=None if budget is None else int(budget),
        )
    except FileNotFoundError as error:
        raise ModelUnavailableError(f"There is no model in {directory}: metadata.json is missing.", hint) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailableError(f"{path} is not the metadata of a checkpoint: {error!r}.", hint) from error


def prompt_version(settings: Settings) -> str:
    """The version of the promptable model that answers interactive requests; "" where none is installed."""
    if not (settings.prompt_model / "metadata.json").is_file():
        return ""
    return read_served_model(settings.prompt_model).version
