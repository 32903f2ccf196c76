"""A registry in a folder and one in memory (which behaves like a bucket), and checkpoints of a few bytes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from model.checkpoints.metadata import file_digest
from training.registry import Registry

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(params=["folder", "bucket"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """An empty registry of either kind."""
    return Registry(tmp_path / "registry" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/some")


@pytest.fixture
def checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Makes a checkpoint directory: `checkpoint("v1", weights=b"...", classes=(...))`."""

    def make(version: str, *, weights: bytes | None = None, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
        directory = tmp_path / "made" / f"{version}-{uuid.uuid4().hex}"
        (directory / "pictures").mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(weights or f"weights of {version}".encode())
        (directory / "config.yaml").write_text("VERSION: 2\n")
        (directory / "MODEL_CARD.md").write_text(f"# {version}\n")
        (directory / "pictures" / "sheet.png").write_bytes(b"png")
        (directory / "state.pt").write_bytes(b"the optimiser's state is no part of a version")
        metadata = {
            "name": "small",
            "version": version,
            "classes": list(classes),
            "created": "2026-01-01T00:00:00+00:00",
            "digest": file_digest(directory / "model.safetensors"),
        }
        (directory / "metadata.json").write_text(json.dumps(metadata))
        return directory

    return make


@pytest.fixture
def snapshot(tmp_path: Path) -> Callable[..., Path]:
    """Makes a snapshot directory: `snapshot("d1", {"a.png": b"..."}, newest="...")`."""

    def make(digest: str, pictures: dict[str, bytes], *, newest: str = "") -> Path:
        directory = tmp_path / "snapshots" / digest
        (directory / "images").mkdir(parents=True)
        for name, content in pictures.items():
            (directory / "images" / name).write_bytes(content)
        manifest = {
            "digest": digest,
            "classes": ["cat"],
            "counts": {"images": len(pictures)},
            "newest_annotation_at": newest,
            "created": "2026-01-01T00:00:00+00:00",
        }
        (directory / "manifest.json").write_text(json.dumps(manifest))
        (directory / "train.json").write_text("{}")
        return directory

    return make
