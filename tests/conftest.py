"""What all tests share: no property test measures time, and PyTorch leaves the second core to others."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# A demo that runs on the developer's machine must not be found by the tests' commands.
STATE_HOME = tempfile.TemporaryDirectory(prefix="transfiner-tests-")
os.environ["XDG_STATE_HOME"] = STATE_HOME.name

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_NOT_UNIT = {"service", "slow", "e2e"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``unit`` every test whose file names no other kind in its ``pytestmark``."""
    for item in items:
        if not _NOT_UNIT & {mark.name for mark in item.iter_markers()}:
            item.add_marker("unit")
