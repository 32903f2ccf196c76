"""The small inputs of ../shared/field that failed once give what is wanted."""

from __future__ import annotations

import re

import pytest

from tests.training.datasets.field_table import FIELD, WANTED, run_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FIELD.is_dir(), reason=f"no {FIELD}: it holds the reproductions"),
]


@pytest.mark.parametrize("name", WANTED)
def test_a_reproduction_gives_what_is_wanted(name: str) -> None:
    output = run_folder(FIELD / name)
    assert "Traceback" not in output
    for pattern in WANTED[name]:
        assert re.search(pattern, output), output
