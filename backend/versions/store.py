"""Checkpoints on this machine: the shipped ones and the imported ones. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.settings import WEIGHTS as SHIPPED
from model.checkpoints.metadata import METADATA_FILE, WEIGHTS_FILE, CheckpointError, read_metadata

# Relative to the working directory, like the demo's other files.
DEFAULT_STORE = Path("var") / "models"


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint directory and its metadata; `problem` says why it cannot be used."""

    directory: Path
    metadata: dict[str, Any]
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        weights = self.directory / WEIGHTS_FILE
        return {
            "name": self.directory.name,
            "directory": str(self.directory),
            "version": str(self.metadata.get("version", "")),
            "classes": list(self.metadata.get("classes", [])),
            "bytes": weights.stat().st_size if weights.is_file() else 0,
            "digest": str(self.metadata.get("digest", "")),
            "problem": self.problem,
        }


def stored_models(store: Path) -> list[StoredModel]:
    """All checkpoints: the shipped ones, then those in `store`, by name."""
    folders = [folder for root in (SHIPPED, store) if root.is_dir() for folder in sorted(root.iterdir())]
    return [_read(folder) for folder in folders if (folder / METADATA_FILE).is_file()]


def find_model(name: str, store: Path) -> Path:
    """The directory of a checkpoint, given as a path or by its name."""
    for directory in (Path(name), store / name, SHIPPED / name):
        if (directory / METADATA_FILE).is_file():
            return directory
    names = ", ".join(model.directory.name for model in stored_models(store)) or "none"
    raise CheckpointError(
        f"no checkpoint {name!r}: expected a directory with {METADATA_FILE}, or one of these names: {names}"
    )


def _read(directory: Path) -> StoredModel:
    try:
        metadata = read_metadata(directory)
    except CheckpointError as error:
        return StoredModel(directory, {}, str(error))
    problem = "" if (directory / WEIGHTS_FILE).is_file() else f"{WEIGHTS_FILE} is missing"
    return StoredModel(directory, metadata, problem)
