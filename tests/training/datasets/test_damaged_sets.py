"""Sets of every format, damaged in known and in random ways: nothing ends in a traceback or is lost unsaid."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.damaged_sets import (
    DAMAGES,
    FORMATS,
    HARMLESS,
    JSON_FORMATS,
    TURNED,
    outcome,
    read_set,
    result_of,
    write_set,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_costs_nothing_or_is_named(damage: str, tmp_path: Path) -> None:
    kinds = DAMAGES[damage][0]
    results = {kind: result_of(kind, damage, tmp_path / kind) for kind in kinds}
    outcomes = {kind: result[0] for kind, result in results.items()}
    for kind, outcome_of_kind in outcomes.items():
        if damage in HARMLESS or (damage == "picture turned by EXIF" and kind in TURNED):
            assert outcome_of_kind == "same", (kind, results[kind])
        else:
            assert outcome_of_kind in ("named", "refused"), (kind, results[kind])
    if damage == "none":
        assert not any(reading.problems for _, reading in results.values())


#: Lists whose emptiness is no damage, and fields whose other values say something else that is valid.
_MEANT = {"result", "annotations", "regions", "images", "categories", "was_cancelled", "neg_category_ids"}
_NEVER_VALID = st.sampled_from([None, [], {}, "zzz", "", float("nan"), [[1]], {"a": [None]}, [{}], 10**400, [None] * 8])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value inside a JSON value that can be damaged."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    is_class_name = path[:1] == ("categories",) and path[-1] == "name"  # another name is another class
    paths = [] if not path or path[-1] in _MEANT or is_class_name else [path]
    return paths + [place for key, inner in steps for place in places(inner, (*path, key))]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(JSON_FORMATS), st.lists(st.tuples(st.integers(0, 10**6), _NEVER_VALID), min_size=1, max_size=3))
@example("label-studio", [(0, {})])  # a task that says nothing
def test_random_values_in_any_json_are_no_silent_loss(kind: str, damages: list[tuple[int, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        damaged_set = write_set(kind, Path(folder))
        before = read_set(damaged_set)
        content = json.loads(damaged_set.truths[0].read_text())
        for number, value in damages:
            paths = places(content)
            path = paths[number % len(paths)]
            inner = content
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = copy.deepcopy(value)
        damaged_set.truths[0].write_text(json.dumps(content))
        assert outcome(before, read_set(damaged_set)) != "SILENT", json.dumps(content)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.booleans(), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), max_size=3))
def test_random_bytes_in_any_file_are_no_traceback(
    kind: str, is_picture: bool, damages: list[tuple[float, bytes]]
) -> None:
    """Bytes may say something else that is valid: then other objects come out, as they should."""
    with tempfile.TemporaryDirectory() as folder:
        damaged_set = write_set(kind, Path(folder))
        path = (damaged_set.pictures if is_picture else damaged_set.truths)[0]
        content = path.read_bytes()
        for share, new in damages:
            place = int(share * len(content))
            content = content[:place] + new + content[place + len(new) :]
        path.write_bytes(content)
        read_set(damaged_set)
