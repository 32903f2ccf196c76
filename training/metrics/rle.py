"""Run lengths of compressed masks, many at once: COCO's text form unpacked with array operations.

Source: the compressed form of pycocotools: a mask is read column by column; its runs alternate between background and
mask, starting with background; from the fourth run on the difference to the run two before is stored; a number
is written in groups of five bits, lowest first, bit 5 says that more follow, bit 4 of the last is the sign.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_MOST_GROUPS = 8  # of five bits: 40 bits are more pixels than any image has
_CHUNK = 4096  # masks unpacked together: enough to forget Python's part, little enough to stay in the cache


@dataclass(frozen=True, slots=True)
class Runs:
    """Run lengths of several masks.

    Attributes:
        lengths: int64, all runs of all masks, one after the other.
        starts: int64, N + 1; mask n has the runs starts[n] to starts[n + 1].
    """

    lengths: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.lengths[self.starts[index] : self.starts[index + 1]]


def in_chunks(counts: Sequence[bytes]) -> Iterator[tuple[int, Runs]]:
    """(index of its first mask, its runs) for chunks of masks."""
    for first in range(0, len(counts), _CHUNK):
        yield first, unpack(counts[first : first + _CHUNK])


def unpack(counts: Sequence[bytes]) -> Runs:
    """The runs of masks in compressed form. What was malformed comes out as run lengths that do not fit the image."""
    sizes = np.array([len(run_lengths) for run_lengths in counts], np.int64)
    text = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    mask_ends = np.cumsum(sizes)
    last = (text & 32) == 0
    if len(text):
        last[mask_ends[sizes > 0] - 1] = True  # a number that its mask's end cuts off ends there
    value_ends = np.flatnonzero(last) + 1
    value_starts = np.concatenate(([0], value_ends[:-1])) if len(value_ends) else value_ends
    values = _numbers(text, value_starts, value_ends)
    starts = np.searchsorted(value_starts, np.concatenate(([0], mask_ends)))
    return Runs(_undo_differences(values, starts), starts)


def _numbers(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    if not len(starts):
        return np.zeros(0, np.int64)
    groups = ends - starts
    place = np.arange(len(text)) - np.repeat(starts, groups)
    shift = 5 * np.minimum(place, 11)  # no image needs more than 60 bits
    values: np.ndarray = np.add.reduceat((text & 31) << shift, starts)
    negative = (text[ends - 1] & 16) != 0
    return values - np.where(negative, np.int64(1) << 5 * np.minimum(groups, 12), 0)


def _undo_differences(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Runs 1, 3, 5... and 2, 4, 6... of each mask are running sums; run 0 stands alone."""
    lengths = np.empty_like(values)
    per_mask = np.diff(starts)
    mask = np.repeat(np.arange(len(per_mask)), per_mask)
    place = np.arange(len(values)) - starts[:-1][mask]
    lengths[place == 0] = values[place == 0]
    for parity in (1, 0):
        chosen = np.flatnonzero((place % 2 == parity) & (place > 0))
        if not len(chosen):
            continue
        sums = np.cumsum(values[chosen])
        first = place[chosen] == (1 if parity else 2)
        before = (sums - values[chosen])[first]
        lengths[chosen] = sums - before[np.cumsum(first) - 1]
    return lengths


def fits(runs: Runs, pixels: np.ndarray) -> np.ndarray:
    """bool N: whether each mask's runs are not negative and fill its image of `pixels[n]` pixels exactly."""
    totals = np.concatenate(([0], np.cumsum(runs.lengths)))
    worst = np.concatenate(([0], np.cumsum(runs.lengths < 0)))
    begin, end = runs.starts[:-1], runs.starts[1:]
    return (totals[end] - totals[begin] == pixels) & (worst[end] == worst[begin])


def crop(lengths: np.ndarray, height: int, columns: slice, rows: slice) -> np.ndarray:
    """The part of a mask inside a box, bool, transposed: columns x rows. Pixels outside are never touched."""
    low, high = columns.start * height, columns.stop * height
    edges = np.concatenate(([0], np.cumsum(lengths)))
    inside = np.diff(np.clip(edges, low, high))
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, inside)
    part: np.ndarray = flat.reshape(columns.stop - columns.start, height)[:, rows]
    return part


def well_formed(counts: Sequence[bytes], pixels: np.ndarray) -> np.ndarray:
    """bool N: whether each compressed mask can be read and describes exactly `pixels[n]` pixels."""
    good = np.ones(len(counts), bool)
    for first, runs in in_chunks(counts):
        part = slice(first, first + len(runs))
        text = np.frombuffer(b"".join(counts[part]), np.uint8)
        owner = np.repeat(np.arange(len(runs)), [len(run_lengths) for run_lengths in counts[part]])
        strange = (text < 48) | (text > 111)
        more = ((text - 48) & 32) != 0
        cut = np.array([bool(run_lengths) and bool((run_lengths[-1] - 48) & 32) for run_lengths in counts[part]], bool)
        ends = np.cumsum([len(run_lengths) for run_lengths in counts[part]])
        more[ends[ends > 0] - 1] = False  # no number reaches into the next mask
        endless = more.copy()
        for groups in range(1, _MOST_GROUPS):
            endless[groups:] &= more[: max(0, len(more) - groups)]
            endless[:groups] = False
        good[part] = fits(runs, pixels[part]) & ~cut
        good[first + owner[strange | endless]] = False
    return good
