"""Read a checkpoint directory without torch: its metadata and its files' digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.files import write_text

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
METADATA_FILE = "metadata.json"
CARD_FILE = "MODEL_CARD.md"
REQUIRED_METADATA = ("name", "version", "classes")


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged or does not fit; the message says what, where and the fix."""


def read_metadata(directory: Path | str) -> dict[str, Any]:
    """The metadata of a checkpoint directory.

    Raises:
        CheckpointError: the file is missing, is no JSON object, or lacks a required entry.
    """
    file = existing_file(Path(directory) / METADATA_FILE)
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{file} holds a {type(metadata).__name__}, expected an object")
    if missing_keys := [key for key in REQUIRED_METADATA if key not in metadata]:
        raise CheckpointError(f"{file} lacks {', '.join(missing_keys)}; it needs {', '.join(REQUIRED_METADATA)}")
    return metadata


def update_metadata(directory: Path | str, facts: Mapping[str, Any]) -> None:
    """Add or replace entries of a checkpoint's metadata, in one step.

    Raises:
        CheckpointError: see `read_metadata`.
    """
    text = json.dumps({**read_metadata(directory), **facts}, indent=2, ensure_ascii=False) + "\n"
    write_text(Path(directory) / METADATA_FILE, text)


def verify_weights(directory: Path | str, metadata: dict[str, Any]) -> Path:
    """The weights file of a checkpoint, after comparing its sha256 with the recorded one.

    Raises:
        CheckpointError: the file is missing, or is not the one that was recorded.
    """
    file = existing_file(Path(directory) / WEIGHTS_FILE)
    digest = file_digest(file)
    if metadata.get("digest") not in (None, digest):
        raise CheckpointError(
            f"{file} has sha256 {digest}, {METADATA_FILE} records {metadata['digest']}: "
            "the file is incomplete or was changed; copy or import the checkpoint again"
        )
    return file


def file_digest(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def existing_file(file: Path) -> Path:
    """Return the path if it is a file.

    Raises:
        CheckpointError: there is no such file, so its folder is not a checkpoint.
    """
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent} is not a checkpoint: {file.name} is missing "
            f"(expected {WEIGHTS_FILE}, {CONFIG_FILE}, {METADATA_FILE})"
        )
    return file
