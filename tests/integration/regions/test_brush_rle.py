"""Our run-length code against Label Studio's own."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle

from integration.regions.shapes import ShapeError, decode_brush_mask, encode_brush_mask

RECORDINGS = Path(__file__).parents[2] / "recordings"
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
MASKS = hnp.arrays(np.bool_, SHAPES)


@given(MASKS)
def test_the_sdk_reads_what_we_write(mask_hw: np.ndarray) -> None:
    theirs = decode_rle(encode_brush_mask(mask_hw)).reshape(*mask_hw.shape, 4)
    assert np.array_equal(theirs[:, :, 3], mask_hw * 255)


@given(MASKS)
def test_we_read_what_the_sdk_writes(mask_hw: np.ndarray) -> None:
    assert np.array_equal(decode_brush_mask(mask2rle(mask_hw.astype(np.uint8) * 255), *mask_hw.shape), mask_hw)


@given(MASKS)
def test_round_trip(mask_hw: np.ndarray) -> None:
    assert np.array_equal(decode_brush_mask(encode_brush_mask(mask_hw), *mask_hw.shape), mask_hw)


@pytest.mark.parametrize("shape", [(1, 16384), (1, 16385), (200, 400), (3, 65536)])
@pytest.mark.parametrize("value", [False, True])
def test_runs_longer_than_one_block(shape: tuple[int, int], value: bool) -> None:
    mask_hw = np.full(shape, value)
    assert np.array_equal(decode_brush_mask(encode_brush_mask(mask_hw), *shape), mask_hw)
    assert np.array_equal(decode_rle(encode_brush_mask(mask_hw)).reshape(*shape, 4)[:, :, 3] > 0, mask_hw)


@given(hnp.arrays(np.uint8, SHAPES))
def test_soft_edges_and_literals(alpha: np.ndarray) -> None:
    """Strokes of the editor have soft edges: runs and literals of any value."""
    rgba = np.stack([np.full_like(alpha, 255)] * 3 + [alpha], axis=-1)
    assert np.array_equal(decode_brush_mask(encode_rle(rgba.ravel()), *alpha.shape), alpha >= 128)


def test_the_recorded_brush_with_a_hole() -> None:
    tasks = json.loads((RECORDINGS / "70_export_json.json").read_text())["data"]
    (region,) = [r for r in tasks[0]["annotations"][0]["result"] if r["type"] == "brushlabels"]
    mask_hw = decode_brush_mask(region["value"]["rle"], region["original_height"], region["original_width"])
    assert mask_hw.sum() == 30_000  # 39,601 would be without its hole
    assert encode_brush_mask(mask_hw) == region["value"]["rle"]


def test_no_pixels() -> None:
    assert decode_brush_mask(encode_brush_mask(np.zeros((0, 5), dtype=bool)), 0, 5).shape == (0, 5)


GOOD = encode_brush_mask(np.eye(9, dtype=bool))


@pytest.mark.parametrize(
    ("rle", "shape", "words"),
    [
        (GOOD, (9, 10), "expected 9 x 10 x 4"),
        (GOOD[:-3], (9, 9), "cut off"),
        ([], (9, 9), "cut off"),
        ([1, 2, 300], (9, 9), "0..255"),
        ([1, -2], (9, 9), "0..255"),
        (["a"], (9, 9), "0..255"),
        ([1.5], (9, 9), "0..255"),
        (None, (9, 9), "0..255"),
        (GOOD[:7] + [255] * 200, (9, 9), "overruns"),
    ],
)
def test_damaged_codes(rle: list[int], shape: tuple[int, int], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        decode_brush_mask(rle, *shape)


@given(st.lists(st.integers(0, 255), max_size=60), st.integers(0, 4), st.integers(0, 4))
def test_any_bytes_decode_or_are_refused(tail: list[int], height: int, width: int) -> None:
    code = [*(height * width * 4).to_bytes(4, "big"), *tail]
    with contextlib.suppress(ShapeError):
        assert decode_brush_mask(code, height, width).shape == (height, width)


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="height x width"):
        encode_brush_mask(np.zeros((2, 3, 4), dtype=bool))
