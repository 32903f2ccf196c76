"""pycocotools without its chatter on standard output."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from pycocotools.coco import COCO


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def indexed(dataset: dict[str, Any]) -> COCO:
    """The index of a ground truth that COCO's evaluation reads."""
    coco = COCO()
    coco.dataset = dataset
    with quiet():
        coco.createIndex()
    return coco
