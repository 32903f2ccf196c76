"""Which sample of which set a run shows at a position: by the sets' sizes, or by shares that somebody chose.

Everything follows from (seed, position) alone, so a resumed run goes on with the samples it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

# From this many samples on a set is shown in its own order: generated scenes without end are all different anyway.
UNSHUFFLED = 1_000_000
# Positions in which every share is kept, as well as whole samples allow.
BLOCK = 20


class Order(Protocol):
    """The order of a run."""

    def place_at(self, position: int) -> tuple[int, int]:
        """(set, index in the set) at a position of the run, 0 or more."""
        ...


class InTurn:
    """Every sample of every set once an epoch, in an order of its own each.

    Args:
        sizes: of the sets, in samples.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self.sizes, self.seed, self.total = tuple(sizes), seed, sum(sizes)

    def place_at(self, position: int) -> tuple[int, int]:
        """See `Order`."""
        index = shuffled(position, self.total, self.seed)
        for number, size in enumerate(self.sizes):
            if index < size:
                return number, index
            index -= size
        raise IndexError(f"position {position} of sets of {self.sizes} samples")


class Mixture:
    """Sets drawn from by shares; each is gone through in epochs of its own, small ones oftener.

    Args:
        sizes: of the sets, in samples. shares: of the samples that are shown, positive; scaled to a sum of 1.

    Raises:
        ValueError: not one positive share a set, or a set without samples.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        if len(shares) != len(sizes) or not shares or min(shares) <= 0:
            raise ValueError(f"{len(sizes)} sets need as many positive shares, got {list(shares)}")
        if min(sizes) <= 0:
            raise ValueError(f"a set without samples cannot be drawn from; the sets have {list(sizes)} samples")
        self.sizes, self.seed = tuple(sizes), seed
        self.counts = _whole(shares)

    def place_at(self, position: int) -> tuple[int, int]:
        """See `Order`."""
        block, rank = divmod(position, sum(self.counts))
        order = _block_order(self.counts, self.seed, block)
        number = order[rank]
        drawn = block * self.counts[number] + order[:rank].count(number)
        return number, shuffled(drawn, self.sizes[number], self.seed + 1 + number)


def shuffled(position: int, total: int, seed: int) -> int:
    """The index that a set of `total` samples shows at a position: each epoch is a permutation of its own."""
    epoch, place = divmod(position, total)
    return place if total >= UNSHUFFLED else int(_permutation(total, seed, epoch)[place])


@lru_cache(maxsize=16)
def _permutation(total: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(total)


@lru_cache(maxsize=16)
def _block_order(counts: tuple[int, ...], seed: int, block: int) -> tuple[int, ...]:
    numbers = np.repeat(np.arange(len(counts)), counts)
    return tuple(np.random.default_rng((seed, block, len(counts))).permutation(numbers).tolist())


def _whole(shares: Sequence[float]) -> tuple[int, ...]:
    """How many of a block's positions each set gets: the largest remainders are rounded up, at least one each."""
    exact = np.asarray(shares, float) / sum(shares) * max(BLOCK, len(shares))
    counts = np.maximum(np.floor(exact), 1).astype(int)
    for number in np.argsort(counts - exact, kind="stable")[: max(0, round(exact.sum()) - counts.sum())]:
        counts[number] += 1
    return tuple(counts.tolist())
