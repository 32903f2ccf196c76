"""The images of annotated tasks, a few fetched ahead, from Label Studio or from a folder beside an exported file."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from backend.errors import ServiceError
from integration.images.urls import decode_data_uri, image_value
from integration.label_studio.tasks import AnnotatedTask
from model.images import DEFAULT_BUDGET_BYTES, ImageError, MemoryBudget, decode_image

#: (task, key of its data that holds the image) -> the file's bytes, or RGB pixels; as `ImageFetcher` has them.
Fetch = Callable[[Mapping[str, Any], str], bytes | np.ndarray]
FETCH_THREADS = 4
#: Files of these formats are kept as they are; others become PNG.
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_MOST_INLINE_BYTES = 100_000_000
#: Label Studio puts eight hexadecimal digits and a dash before the name of an uploaded file.
_PREFIX = 9


@dataclass(frozen=True, slots=True, eq=False)
class TaskImage:
    """An image, and its file when that can be kept: bytes and suffix."""

    image_rgb: np.ndarray
    file: tuple[bytes, str] | None


def fetch_images(
    tasks: Sequence[AnnotatedTask], fetch: Fetch, value_key: str, max_pixels: int
) -> Iterator[tuple[AnnotatedTask, TaskImage | str]]:
    """Tasks in their order, each with its image or the reason why there is none; a few are fetched ahead."""

    budget = MemoryBudget(DEFAULT_BUDGET_BYTES)

    def get(task: AnnotatedTask) -> TaskImage | str:
        row = {"id": task.id, "data": task.data, "file_upload": task.file_name}
        try:
            return _decoded(fetch(row, value_key), task, max_pixels, budget)
        except (ImageError, ServiceError, OSError) as error:
            return f"its image cannot be had: {error}"

    waiting: deque[tuple[AnnotatedTask, Future[TaskImage | str]]] = deque()
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        for task in tasks:
            waiting.append((task, pool.submit(get, task)))
            if len(waiting) > 2 * FETCH_THREADS:
                first, image = waiting.popleft()
                yield first, image.result()
        for task, image in waiting:
            yield task, image.result()


def _decoded(fetched: bytes | np.ndarray, task: AnnotatedTask, max_pixels: int, budget: MemoryBudget) -> TaskImage:
    if isinstance(fetched, np.ndarray):
        return TaskImage(fetched, None)
    image_rgb = decode_image(fetched, name=f"image of task {task.id}", max_pixels=max_pixels, budget=budget)
    with Image.open(io.BytesIO(fetched)) as picture:
        suffix = _SUFFIXES.get(picture.format or "")
    return TaskImage(image_rgb, (fetched, suffix) if suffix else None)


class ImageFolder:
    """Images of an exported file, found by name in a folder.

    A task's image may be named by its path below the folder, by its file name alone, or by the name that Label Studio
    gave the upload, with or without the prefix.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ServiceError(f"There is no folder {folder}.", "Give the folder with the images of the export.")
        self._folder = folder
        self._paths: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                names = {path.name, path.relative_to(folder).as_posix(), uploaded_name(path.name)}
                for name in names:
                    self._paths.setdefault(name, []).append(path)

    def fetch(self, task: Mapping[str, Any], value_key: str) -> bytes:
        """The file of a task. Raises ServiceError: there is none, or more than one with its name; ImageError."""
        value = image_value(task, value_key)
        if value[:5].lower() == "data:":  # the task holds the image itself
            return decode_data_uri(value, _MOST_INLINE_BYTES)
        names = _names(value, str(task.get("file_upload") or ""))
        for name in names:
            paths = self._paths.get(name, [])
            if len(paths) > 1:
                raise ServiceError(
                    f"{len(paths)} files in {self._folder} are called {name!r}.", "Use paths, or other names."
                )
            if paths:
                return paths[0].read_bytes()
        raise ServiceError(f"{self._folder} has no file {' or '.join(map(repr, names))}.", "Copy it there.")


def uploaded_name(name: str) -> str:
    """The name that Label Studio gives an uploaded file after the prefix: ``Photo 1 (2).png`` is ``Photo_1_2.png``."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _names(value: str, file_upload: str) -> list[str]:
    """What the file may be called, the surest name first."""
    # In an address `#` begins a fragment; in the key of a bucket or a path it is a letter.
    is_address = value.startswith(("http://", "https://"))
    parts = urlsplit(value.replace("\\", "/") if is_address else value.replace("\\", "/").replace("#", "%23"))
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0].lstrip("/")
    names = [path, *(path.split("/", n)[-1] for n in range(1, path.count("/") + 1)), file_upload]
    for name in (path.rpartition("/")[2], file_upload):
        if len(name) > _PREFIX and name[_PREFIX - 1] == "-" and set(name[: _PREFIX - 1]) <= set("0123456789abcdef"):
            names.append(name[_PREFIX:])
    return list(dict.fromkeys(name for name in names if name))
