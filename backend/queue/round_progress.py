"""What a running round says while it runs, in Redis for pages: never the truth, never in the way."""

from __future__ import annotations

import logging
import time
from typing import Any

import redis

from backend.queue.train_queue import RUNNING, TrainQueue

log = logging.getLogger(__name__)
# Points of the loss curve on the page.
MOST_POINTS = 120


class Progress:
    """Notes of one run; a queue server that is away for a while costs nothing but the notes."""

    def __init__(self, queue: TrainQueue, project: str, run: str, worker: str = "") -> None:
        self.queue = queue
        self.project = project
        self.run = run
        self.worker = worker
        self.curve: list[tuple[int, float]] = []  # step and loss
        self.last: dict[str, Any] = {}

    def stage(self, stage: str) -> None:
        """The round has come to a stage."""
        self.curve, self.last = [], {}
        self._note(
            state=RUNNING,
            worker=self.worker or None,
            stage=stage,
            stage_since=time.time(),
            iteration=None,
            of=None,
            eta_s=None,
            losses=None,
            curve=None,
        )

    def show(self, facts: dict[str, Any]) -> None:
        """The training's own progress.json: iteration, of, losses or the whole curve, eta_s, phase."""
        if not facts or facts == self.last:
            return
        self.last = facts
        losses = {name: round(float(value), 4) for name, value in (facts.get("losses") or {}).items()}
        if facts.get("curve"):
            self.curve = [(int(step), round(float(loss), 4)) for step, loss in facts["curve"]]
        elif losses:
            self.curve.append((int(facts.get("iteration") or 0), losses.get("total", sum(losses.values()))))
            # Every second one goes when there are too many: the curve keeps its shape.
            self.curve = self.curve[::2] if len(self.curve) > MOST_POINTS else self.curve
        self._note(
            iteration=facts.get("iteration"),
            of=facts.get("of"),
            eta_s=facts.get("eta_s"),
            phase=facts.get("phase"),
            losses=losses or None,
            curve=self.curve or None,
        )

    def _note(self, **facts: Any) -> None:
        try:
            self.queue.note(self.project, self.run, **facts)
        except redis.RedisError as error:
            log.warning("progress of project %s not noted: %s", self.project, error)
