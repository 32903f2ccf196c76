"""Ctrl-C and SIGTERM as a wish: the run finishes its iteration, saves, and ends."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)


class StopWish:
    """A context in which SIGINT and SIGTERM set `wished` instead of ending the program.

    Outside the main thread, where Python handles no signals, nobody can wish.
    """

    def __init__(self) -> None:
        self.wished = False
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopWish:
        if threading.current_thread() is threading.main_thread():
            self._previous = {one: signal.signal(one, self._wish) for one in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, handler in self._previous.items():
            signal.signal(one, handler)

    def _wish(self, number: int, _: FrameType | None) -> None:
        logger.warning("%s: finishing this iteration, then saving", signal.Signals(number).name)
        self.wished = True
