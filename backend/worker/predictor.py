"""The part of `model.predictor.Predictor` that the service uses; importing it imports no torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from model.instance import Instance


class Predictor(Protocol):
    """Images in, instances out.

    Attributes:
        weights_bytes: memory of the weights on their device.
        device: where it runs; "cuda..." for GPUs.
        precision: fp32, bf16 or mixed.
    """

    labels: tuple[str, ...]
    version: str
    precision: str

    @property
    def weights_bytes(self) -> int: ...

    @property
    def device(self) -> object: ...

    def smaller(self, divisor: int) -> Predictor:
        """The same weights looking at images of 1/divisor of the edge."""
        ...

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]: ...
