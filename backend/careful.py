"""Predicting a batch so that one bad image fails alone, and so that running out of memory is not the end.

Memory: the batch, then each image alone, then at a fraction of its size, then in parts, then on the CPU. What had to
be given up is said on the prediction; the next batch starts at the top again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from rq.timeouts import JobTimeoutException

from backend.errors import TaskError
from backend.predictor import Predictor
from backend.smaller import FACTORS, grown, is_out_of_memory, release_memory, shrunk
from model.instance import Instance
from model.tiling import Tiling, predict_tiled

log = logging.getLogger(__name__)
Call = Callable[[], Sequence[Instance]]
T = TypeVar("T")
# The last step on the same device cuts an image into parts of about half its edge, each looked at this much smaller.
PARTS_DIVISOR = 4
LEAST_PART_PX = 128


@dataclass(frozen=True)
class Found:
    """Instances of one image; `note` says what had to be given up for them, "" when nothing was."""

    instances: Sequence[Instance]
    note: str = ""


@dataclass(frozen=True)
class Care:
    """How to predict.

    Attributes:
        tiling: which images are too large to be looked at in one piece.
        batch: tiles of one image predicted together.
        spare: the same model on the CPU, None when the model is there already.
    """

    tiling: Tiling = field(default_factory=Tiling)
    batch: int = 1
    spare: Callable[[], Predictor | None] = lambda: None


def predict_carefully(
    predictor: Predictor, images: Mapping[str, np.ndarray], care: Care | None = None
) -> dict[str, Found | TaskError]:
    """All that are not large at once, and when that fails one by one; large ones in tiles.

    Raises:
        JobTimeoutException: the batch's time is over.
    """
    care = care or Care()
    ordinary = {key: image for key, image in images.items() if not care.tiling.cuts(image)}
    results: dict[str, Found | TaskError] = {}
    if len(ordinary) > 1:
        found = _tried(lambda: predictor(list(ordinary.values())))
        if isinstance(found, Exception):
            log.warning("a batch of %d failed (%r); running its images one by one", len(ordinary), found)
        else:
            results = {key: Found(instances) for key, instances in zip(ordinary, found, strict=True)}
    return {
        key: results[key] if key in results else _alone(predictor, image, care)
        for key, image in images.items()
    }


def _alone(predictor: Predictor, image: np.ndarray, care: Care) -> Found | TaskError:
    height, width = image.shape[:2]
    for note, call in _steps(predictor, image, care):
        found = _tried(call)
        if not isinstance(found, Exception):
            if note:
                log.warning("%d x %d: %s", width, height, note)
            return Found(found, note)
        if not is_out_of_memory(found):
            return TaskError(
                f"The model failed on this image of {width} x {height}: {found!r}.",
                "The worker's log has more.",
            )
    return TaskError(
        f"Out of memory on an image of {width} x {height}, even at 1/{FACTORS[-1]} of its size and in parts.",
        "Use a machine or GPU with more memory, or smaller images.",
    )


def _tried(call: Callable[[], T]) -> T | Exception:
    """What `call` gives, or its error without the frames that would keep its tensors in memory."""
    try:
        return call()
    except JobTimeoutException:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            log.error("the model failed", exc_info=error)
        failure = error
    failure.__traceback__ = failure.__context__ = failure.__cause__ = None
    release_memory()
    return failure


def _steps(predictor: Predictor, image: np.ndarray, care: Care) -> Iterator[tuple[str, Call]]:
    """Ways to predict one image, each with less memory than the one before, and what to say about it."""
    yield "", lambda: _plain(predictor, image, care, care.batch)
    if care.tiling.cuts(image) and care.batch > 1:
        yield "", lambda: _plain(predictor, image, care, 1)
    for factor in FACTORS:
        yield (
            f"Out of memory: predicted at 1/{factor} of the image's size, outlines are coarser.",
            _call_smaller(predictor, image, factor),
        )
    part_px = max(LEAST_PART_PX, max(image.shape[:2]) // 2)
    parts = Tiling(above_px=1, tile_px=part_px, overlap_px=part_px // 4, overview=False)
    yield (
        f"Out of memory: predicted in parts of {part_px} px, outlines may be coarser where they meet.",
        lambda: predict_tiled(predictor.smaller(PARTS_DIVISOR), image, parts),
    )
    if (spare := care.spare()) is not None:
        yield "Out of memory on the GPU: predicted on the CPU.", lambda: _plain(spare, image, care, 1)


def _plain(predictor: Predictor, image: np.ndarray, care: Care, batch: int) -> list[Instance]:
    if care.tiling.cuts(image):
        return predict_tiled(predictor, image, care.tiling, batch=batch)
    return predictor([image])[0]


def _call_smaller(predictor: Predictor, image: np.ndarray, factor: int) -> Call:
    """Both what the network sees and the masks that are pasted are made smaller."""
    height, width = image.shape[:2]

    def call() -> list[Instance]:
        found = predictor.smaller(factor)([shrunk(image, factor)])[0]
        return [grown(instance, height, width) for instance in found]

    return call
