"""Which detectron2 the tests ran on: the wheel of the lock, or the upstream checkout that `make parity` names."""

from __future__ import annotations

import os
from pathlib import Path

import detectron2
import pytest


def test_the_checkout_that_was_asked_for_is_the_one_imported() -> None:
    checkout = os.environ.get("TRANSFINER_DETECTRON2")
    if not checkout:
        pytest.skip("TRANSFINER_DETECTRON2 is not set: these tests run on the locked wheel")
    assert Path(detectron2.__file__).resolve().is_relative_to(Path(checkout).resolve())
