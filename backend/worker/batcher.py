"""Taking waiting tasks out of the queue, a batch in one round trip, and leaving out what needs no computing.

Interactive tasks belong to an interactive worker; where none lives, every other worker takes them between its batches.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from redis import Redis

from backend.queue.connection import load_script, text
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.keys import INTERACTIVE_LANE, INTERACTIVE_WORKERS, NAMES, PREDICT_LANE, WORKERS, running_key
from backend.queue.recovery import Heartbeat
from backend.settings import Settings

log = logging.getLogger(__name__)
POLL_S = 0.002


@dataclass(frozen=True)
class Batch:
    """Tasks to be predicted together.

    Attributes:
        is_alone: it was there when a worker died; nothing else may be at hand, so that the killer is found.
    """

    jobs: dict[str, PredictionJob]
    is_alone: bool = False


class Batcher:
    """Batches for one worker, which answers for them with its signs of life from then on."""

    def __init__(self, queue: JobQueue, vitals: Heartbeat, settings: Settings, *, is_interactive: bool = False) -> None:
        self.queue = queue
        self.connection: Redis = queue.connection
        self.vitals = vitals
        self.limits = settings
        self.is_interactive = is_interactive
        self._script = load_script(self.connection, "take")

    def first(self) -> Batch | None:
        """A batch to begin with: the interactive task that waits longest, alone, else what waits and comes soon."""
        urgent = self.urgent()
        if urgent is not None or self.is_interactive:
            return urgent
        if self.limits.max_wait_ms and self.connection.llen(PREDICT_LANE):
            self._await_company()
        return self.next()

    def urgent(self) -> Batch | None:
        """The interactive task that waits longest; left to an interactive worker where one lives."""
        if not self.is_interactive and self.connection.exists(INTERACTIVE_WORKERS):
            return None
        return self._take(INTERACTIVE_LANE, 1)

    def next(self) -> Batch | None:
        """What waits, up to a whole batch; nothing for an interactive worker."""
        if self.is_interactive:
            return None
        return self._take(PREDICT_LANE, self.limits.max_batch)

    def ahead(self) -> Batch | None:
        """The same, to be prepared while another batch runs: not at the cost of workers that could run it now."""
        if self.is_interactive:
            return None
        most = self.limits.max_batch
        return self._take(PREDICT_LANE, most, left_to_each=most, may_be_alone=False)

    def _await_company(self) -> None:
        """Give others `max_wait_ms` to arrive."""
        give_up = time.monotonic() + self.limits.max_wait_ms / 1000
        while time.monotonic() < give_up and self.connection.llen(PREDICT_LANE) < self.limits.max_batch:
            time.sleep(POLL_S)

    def _take(self, lane: str, most: int, *, left_to_each: int = 0, may_be_alone: bool = True) -> Batch | None:
        """One round trip; see take.lua."""
        name = self.vitals.name
        is_alone, dropped, *taken = self._script(
            keys=[lane, running_key(name), WORKERS],
            args=[NAMES, name, time.time(), most, left_to_each, int(may_be_alone)],
        )
        for job_id in dropped:
            log.info("%s: nobody waits for it any more; dropped", text(job_id))
        if not taken:
            return None
        payloads = zip(map(text, taken[::2]), taken[1::2], strict=True)
        return Batch({job_id: self.queue.job_of(json.loads(payload)) for job_id, payload in payloads}, bool(is_alone))
