"""What all tests share: no property test measures time, and PyTorch leaves the second core to others."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_NOT_UNIT = {"service", "slow", "e2e"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``unit`` every test whose file names no other kind in its ``pytestmark``."""
    for item in items:
        if not _NOT_UNIT & {mark.name for mark in item.iter_markers()}:
            item.add_marker("unit")
