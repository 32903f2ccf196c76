"""Finds the helpers beside the tests, and makes one small checkpoint and snapshot for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.finetune.tiny_finetune import tiny_checkpoint, tiny_snapshot


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network of the classes gear and leaf."""
    return tiny_checkpoint(tmp_path_factory.mktemp("active") / "model")


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of gears and nuts, none held out."""
    return tiny_snapshot(tmp_path_factory.mktemp("snapshots"), classes=("nut", "gear"), images=5)
