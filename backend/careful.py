"""Predicting a batch so that one bad image fails alone, and so that running out of memory is not the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from rq.timeouts import JobTimeoutException

from backend.errors import TaskError
from backend.smaller import FACTORS, grown, is_out_of_memory, release_memory, shrunk
from model.instance import Instance

log = logging.getLogger(__name__)
Predict = Callable[[list[np.ndarray]], list[list[Instance]]]


@dataclass(frozen=True)
class Found:
    """Instances of one image; `note` says what had to be given up for them, "" when nothing was."""

    instances: list[Instance]
    note: str = ""


def predict_carefully(predict: Predict, images: Mapping[str, np.ndarray]) -> dict[str, Found | TaskError]:
    """All at once; when that fails one by one; when memory runs out at a fraction of the size.

    Raises:
        JobTimeoutException: the batch's time is over.
    """
    if not images:
        return {}
    try:
        found = predict(list(images.values()))
        return {key: Found(instances) for key, instances in zip(images, found, strict=True)}
    except JobTimeoutException:
        raise
    except Exception as error:
        release_memory()
        if len(images) > 1:
            log.warning("a batch of %d failed (%r); running its images one by one", len(images), error)
            return {key: predict_carefully(predict, {key: image})[key] for key, image in images.items()}
        key, image = next(iter(images.items()))
        return {key: _smaller(predict, image) if is_out_of_memory(error) else _failure(image, error)}


def _smaller(predict: Predict, image: np.ndarray) -> Found | TaskError:
    height, width = image.shape[:2]
    for factor in FACTORS:
        try:
            (instances,) = predict([shrunk(image, factor)])
        except JobTimeoutException:
            raise
        except Exception as error:
            release_memory()
            if not is_out_of_memory(error):
                return _failure(image, error)
            continue
        note = f"Out of memory: predicted at 1/{factor} of the image's size, outlines are coarser."
        log.warning("%d x %d: %s", width, height, note)
        return Found([grown(instance, height, width) for instance in instances], note)
    return TaskError(
        f"Out of memory on an image of {width} x {height}, even at 1/{FACTORS[-1]} of its size.",
        "Use a machine or GPU with more memory, or smaller images.",
    )


def _failure(image: np.ndarray, error: Exception) -> TaskError:
    log.error("the model failed on an image", exc_info=error)
    height, width = image.shape[:2]
    return TaskError(
        f"The model failed on this image of {width} x {height}: {error!r}.", "The worker's log has more."
    )
