"""Map a function over arguments in several processes; results come in the arguments' order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def map_in_processes(
    function: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    processes: int,
    *,
    start: Callable[..., object] | None = None,
    start_with: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Call a function with each tuple of arguments; yields results in order, as soon as they are available.

    With one process, or one argument, everything happens in this process. Others are spawned (not forked: that is not
    safe with torch's threads) and end with this one, even if it is killed.

    Args:
        function: of a module, so that another process can import it; called with each tuple of arguments.
        start: called first in each process with `start_with`; also in this one when there are no others.

    Raises:
        Exception: whatever `function` raised; calls that have not begun by then are cancelled.
    """
    if processes <= 1 or len(arguments) <= 1:
        if start is not None:
            start(*start_with)
        yield from (function(*argument) for argument in arguments)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(processes, len(arguments)), context, initializer=_begin, initargs=(start, start_with)
    )
    try:
        futures = deque(pool.submit(function, *argument) for argument in arguments)
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(start: Callable[..., object] | None, start_with: tuple[Any, ...]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if start is not None:
        start(*start_with)


def _end_with(parent: Any) -> None:
    """End this process when its parent ends: a killed parent cannot end its children."""
    parent.join()
    os._exit(1)


#: Images that a process reads in one go; with fewer than WORTH_PROCESSES, starting processes takes longer than reading.
CHUNK, WORTH_PROCESSES = 4, 24


def map_images_in_processes(
    collect: Callable[..., Result],
    images: Sequence[Any],
    extra_arguments: tuple[Any, ...],
    processes: int,
    progress: Callable[[int, int], object],
) -> Iterator[Result]:
    """Yield `collect(images, *extra_arguments)` for a few images at a time, in order; by processes where it is faster.

    Args:
        progress: called with (images done, images in all).
    """
    work = [(images[start : start + CHUNK], *extra_arguments) for start in range(0, len(images), CHUNK)]
    parts = map_in_processes(collect, work, processes if len(images) >= WORTH_PROCESSES else 1)
    for number, part in enumerate(parts, 1):
        yield part
        progress(min(number * CHUNK, len(images)), len(images))
