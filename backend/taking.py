"""Taking waiting tasks out of the queue, many in one round trip, and leaving out what needs no computing."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis
from rq import Queue
from rq.job import Job

from backend.connection import text
from backend.jobs import JobQueue, PredictionJob
from backend.orphans import WORKERS, Vitals
from backend.records import FINAL, STATS, Waiting
from backend.settings import Settings

log = logging.getLogger(__name__)
POLL_S = 0.002

# Takes up to ARGV[1] ids of a lane, but leaves at least ARGV[2] for others.
POP = """
local n = math.min(tonumber(ARGV[1]), redis.call('LLEN', KEYS[1]) - tonumber(ARGV[2]))
if n < 1 then return {} end
return redis.call('LPOP', KEYS[1], n)
"""


@dataclass(frozen=True)
class Batch:
    """Tasks to be predicted together.

    Attributes:
        is_alone: it was there when a worker died; nothing else may be at hand, so that the killer is found.
    """

    jobs: dict[str, PredictionJob]
    is_alone: bool = False


class Taking:
    """Batches for one worker, which answers for them with its signs of life from then on."""

    def __init__(self, queue: JobQueue, vitals: Vitals, settings: Settings) -> None:
        self.queue = queue
        self.connection: Redis = queue.connection
        self.vitals = vitals
        self.limits = settings
        self._pop = self.connection.register_script(POP)

    def first(self, job_id: str, lane: Queue) -> Batch | None:
        """A batch that begins with a task already taken; interactive ones stay alone, others get company."""
        if lane.name == self.queue.interactive.name:
            return self._batch([job_id], lane)
        return self._batch([job_id, *self._company()], lane)

    def urgent(self) -> Batch | None:
        """The interactive task that waits longest."""
        return self._take(self.queue.interactive, 1)

    def next(self) -> Batch | None:
        """What waits, up to a whole batch."""
        return self._take(self.queue.predict, self.limits.max_batch)

    def ahead(self) -> Batch | None:
        """The same, to be prepared while another batch runs: not at the cost of workers that could run it now."""
        others = max(0, int(self.connection.scard(WORKERS)) - 1)
        spare = others * self.limits.max_batch
        return self._take(self.queue.predict, self.limits.max_batch, spare=spare, may_be_alone=False)

    def _company(self) -> list[str]:
        """Ids of others that wait, giving them `max_wait_ms` to arrive."""
        ids: list[str] = []
        give_up = time.monotonic() + self.limits.max_wait_ms / 1000
        while (room := self.limits.max_batch - 1 - len(ids)) > 0:
            ids += self._ids(self.queue.predict, room)
            if time.monotonic() >= give_up:
                break
            time.sleep(POLL_S)
        return ids

    def _take(self, lane: Queue, count: int, *, spare: int = 0, may_be_alone: bool = True) -> Batch | None:
        """Taken ids may all need no computing, so this goes on until something does or nothing waits."""
        while ids := self._ids(lane, count, spare):
            if (batch := self._batch(ids, lane, may_be_alone=may_be_alone)) is not None:
                return batch
            if not may_be_alone:
                return None
        return None

    def _ids(self, lane: Queue, count: int, spare: int = 0) -> list[str]:
        return [text(job_id) for job_id in self._pop(keys=[lane.key], args=[count, spare])]

    def _batch(self, ids: Sequence[str], lane: Queue, *, may_be_alone: bool = True) -> Batch | None:
        waiting = self.queue.records.waiting(ids)
        useful = self._useful(ids, waiting)
        suspects = [job_id for job_id in useful if waiting[job_id].attempts]
        is_alone = bool(useful and suspects and useful[0] == suspects[0])
        kept = useful[:1] if is_alone and may_be_alone else useful[: _before(useful, suspects)]
        self._give_back(useful[len(kept) :], lane)
        if not kept:
            return None
        self.vitals.running(kept)
        self.queue.records.start(kept, self.vitals.name)
        payloads = {job_id: waiting[job_id].payload or {} for job_id in kept}
        return Batch({i: PredictionJob.from_payload(payload) for i, payload in payloads.items()}, is_alone)

    def _useful(self, ids: Sequence[str], waiting: dict[str, Waiting]) -> list[str]:
        """Without those that another worker has ended, that are forgotten, or that nobody wants any more."""
        known = [i for i in ids if waiting[i].payload is not None and waiting[i].state not in FINAL]
        dropped = self.queue.wanted.forget_unwanted(known) if known else []
        useful = [job_id for job_id in known if job_id not in dropped]
        if useless := set(ids) - set(useful):
            with self.connection.pipeline() as pipe:
                pipe.delete(*(Job.key_for(job_id) for job_id in useless))
                if dropped:
                    pipe.hincrby(STATS, "tasks_dropped", len(dropped))
                pipe.execute()
        for job_id in dropped:
            log.info("%s: nobody waits for it any more; dropped", job_id)
        return useful

    def _give_back(self, ids: Sequence[str], lane: Queue) -> None:
        """To the front, in the order in which they were taken."""
        if ids:
            self.connection.lpush(lane.key, *reversed(ids))


def _before(ids: Sequence[str], suspects: Sequence[str]) -> int:
    return ids.index(suspects[0]) if suspects else len(ids)
