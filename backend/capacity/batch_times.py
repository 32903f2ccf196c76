"""Seconds of whole batches, drawn again from measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class BatchTime:
    """Seconds of a batch's stages: fetching its images, its network, its outlines until they are recorded."""

    images_s: float
    model_s: float
    regions_s: float

    @property
    def total_s(self) -> float:
        return self.images_s + self.model_s + self.regions_s

    def towards(self, other: BatchTime, share: float) -> BatchTime:
        """On the straight line from here (0) to `other` (1)."""
        return BatchTime(
            self.images_s + share * (other.images_s - self.images_s),
            self.model_s + share * (other.model_s - self.model_s),
            self.regions_s + share * (other.regions_s - self.regions_s),
        )


class BatchTimes:
    """Measured batches by their number of tasks.

    A size that was not measured lies on the straight line between its measured neighbours, the slow ones of one with
    the slow ones of the other. Nothing is said about sizes above the largest.

    Args:
        measured: by number of tasks, from 1 on.

    Raises:
        ValueError: nothing measured, or nothing for a single task.
    """

    def __init__(self, measured: Mapping[int, Sequence[BatchTime]]) -> None:
        self._ranked = {
            size: sorted(times, key=lambda one: one.total_s)
            for size, times in sorted(measured.items())
            if times
        }
        self.sizes = list(self._ranked)
        if not self.sizes or self.sizes[0] != 1:
            raise ValueError(
                f"batches of {self.sizes} tasks were measured; expected some of a single task, too"
            )

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    def draw(self, size: int, rank: float) -> BatchTime:
        """A measured batch.

        Args:
            size: its number of tasks, 1 to `largest`.
            rank: 0 up to (without) 1; the fastest to the slowest.
        """
        if size in self._ranked:
            return self._of_rank(size, rank)
        above = next(one for one in self.sizes if one > size)
        below = self.sizes[self.sizes.index(above) - 1]
        share = (size - below) / (above - below)
        return self._of_rank(below, rank).towards(self._of_rank(above, rank), share)

    def _of_rank(self, size: int, rank: float) -> BatchTime:
        ranked = self._ranked[size]
        return ranked[int(rank * len(ranked))]

    def mean(self, size: int) -> BatchTime:
        """Means of a measured size."""
        times = self._ranked[size]
        return BatchTime(
            float(np.mean([one.images_s for one in times])),
            float(np.mean([one.model_s for one in times])),
            float(np.mean([one.regions_s for one in times])),
        )

    def slowed(self, factor: float) -> BatchTimes:
        """The same with all stages taking `factor` times as long."""
        return BatchTimes(
            {
                size: [
                    BatchTime(factor * one.images_s, factor * one.model_s, factor * one.regions_s)
                    for one in times
                ]
                for size, times in self._ranked.items()
            }
        )

    def with_images_a_second(self, rate: float) -> BatchTimes:
        """The same with another network: n images take n/rate s on average, spread as the measured ones are.

        An assumption, for those who have no such device: the batch size makes no difference, and fetching and
        outlining take what they took here.
        """
        return BatchTimes({size: self._sped_up(size, rate) for size in self.sizes})

    def _sped_up(self, size: int, rate: float) -> list[BatchTime]:
        factor = size / rate / self.mean(size).model_s
        times = self._ranked[size]
        return [BatchTime(one.images_s, one.model_s * factor, one.regions_s) for one in times]
