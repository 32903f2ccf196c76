"""A checkpoint that another version replaces while workers serve it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from model.checkpoint_metadata import METADATA_FILE


def replaceable_copy(model: Path, folder: Path) -> Path:
    """The checkpoint again in `folder`, so that the given one stays as it is."""
    return shutil.copytree(model, folder / model.name)


def give_new_version(directory: Path) -> None:
    """The same weights under another version: for workers another model, to be loaded."""
    file = directory / METADATA_FILE
    facts = json.loads(file.read_text(encoding="utf-8"))
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps({**facts, "version": f"{facts['version']}-next"}), encoding="utf-8")
    unfinished.replace(file)
