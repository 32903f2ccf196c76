"""What a run says while it runs: a line now and then, losses as JSON lines, TensorBoard."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, Any

logger = logging.getLogger(__name__)


class RunLog:
    """Collects losses, and every `period` iterations writes their means.

    Files in `folder`: ``losses.jsonl`` (one object a line) and ``tensorboard/``.
    """

    def __init__(self, folder: Path, period: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.period = max(1, period)
        self._lines: IO[str] = (folder / "losses.jsonl").open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard")
        self._recent: list[dict[str, float]] = []
        self._durations_s: deque[float] = deque(maxlen=50)
        self._last_s = time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def record(
        self, iteration: int, losses: dict[str, float], lr: float, fraction: float, elapsed_s: float
    ) -> None:
        """Take in one iteration; `fraction` of the run is done after `elapsed_s` seconds."""
        now = time.monotonic()
        self._durations_s.append(now - self._last_s)
        self._last_s = now
        self._recent.append(losses)
        if iteration % self.period:
            return
        means = {name: sum(one[name] for one in self._recent) / len(self._recent) for name in losses}
        self._recent.clear()
        self._write(iteration, means, lr, fraction, elapsed_s)

    def _write(
        self, iteration: int, means: dict[str, float], lr: float, fraction: float, elapsed_s: float
    ) -> None:
        seconds = sum(self._durations_s) / len(self._durations_s)
        left_s = elapsed_s * (1 - fraction) / fraction if fraction > 0 else 0.0
        line = {
            "iteration": iteration,
            "elapsed_s": round(elapsed_s, 1),
            "lr": lr,
            "seconds_per_iteration": seconds,
        }
        self._lines.write(json.dumps(line | means) + "\n")
        self._lines.flush()
        if self._board is not None:
            for name, value in (means | {"lr": lr}).items():
                self._board.add_scalar(name, value, iteration)
        parts = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in means.items())
        logger.info("%6d %5.1f%% %s | lr %.1e %.2f s/it, %.0f min left", iteration, 100 * fraction, parts, lr,
                    seconds, left_s / 60)  # fmt: skip


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("tensorboard is not installed: losses go to losses.jsonl only")
        return None
    return SummaryWriter(str(folder))
