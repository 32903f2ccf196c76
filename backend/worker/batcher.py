"""Taking waiting tasks out of the queue, a batch in one round trip, and leaving out what needs no computing."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from redis import Redis
from rq import Queue

from backend.queue.connection import text
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import job_key
from backend.queue.leases import FORGET_IF_UNWANTED
from backend.queue.recovery import WORKERS, Heartbeat, running_key
from backend.settings import Settings

log = logging.getLogger(__name__)
POLL_S = 0.002

# Takes tasks and notes that this worker runs them, atomically: none is ever in between, and a request that comes too
# late to be taken along finds its task still waiting. Tasks that have ended, were forgotten, or that nobody wants any
# more are left out; goes on until there is something to compute or nothing waits. A suspect, which some worker had
# begun before, comes alone (ARGV[4] == '1') or stays where it is; what was behind it goes back to the front, in order.
# KEYS: lane, what runs on this worker, all workers. ARGV: most tasks, tasks to leave for each other worker, unix time,
# whether a suspect may come, name of the worker, prefix of the records, then ids that were taken already.
# Returns: whether it is a suspect, ids dropped, then id and payload of each task.
TAKE = (
    FORGET_IF_UNWANTED
    + """
local most, now, worker, prefix = tonumber(ARGV[1]), ARGV[3], ARGV[5], ARGV[6]
local spare = math.max(0, redis.call('SCARD', KEYS[3]) - 1) * tonumber(ARGV[2])
local final = {done = true, failed = true, parked = true}
local ids, dropped, begun_before = {}, {}, {}
for i = 7, #ARGV do ids[#ids + 1] = ARGV[i] end

local function is_useful(job)
  local fields = redis.call('HMGET', prefix .. job, 'state', 'attempts')
  if not final[fields[1]] and redis.call('HEXISTS', prefix .. job, 'payload') == 1 then
    if not forget_if_unwanted(job, prefix .. job) then
      begun_before[job] = tonumber(fields[2] or 0) > 0
      return true
    end
    dropped[#dropped + 1] = job
  end
  redis.call('DEL', 'rq:job:' .. job)
  return false
end

local useful = {}
repeat
  local room = math.min(most - #ids, redis.call('LLEN', KEYS[1]) - spare)
  if room > 0 then
    for _, job in ipairs(redis.call('LPOP', KEYS[1], room)) do ids[#ids + 1] = job end
  end
  local is_over = #ids == 0
  for _, job in ipairs(ids) do
    if is_useful(job) then useful[#useful + 1] = job end
  end
  ids = {}
until is_over or #useful > 0
if #dropped > 0 then redis.call('HINCRBY', 'transfiner:stats', 'tasks_dropped', #dropped) end

local kept = 0
while kept < #useful and not begun_before[useful[kept + 1]] do kept = kept + 1 end
local is_alone = kept == 0 and #useful > 0 and ARGV[4] == '1'
if is_alone then kept = 1 end
for i = #useful, kept + 1, -1 do redis.call('LPUSH', KEYS[1], useful[i]) end

local answer = {is_alone and 1 or 0, dropped}
for i = 1, kept do
  local key = prefix .. useful[i]
  redis.call('SADD', KEYS[2], useful[i])
  redis.call('HSET', key, 'state', 'running', 'started_at', now, 'worker', worker)
  redis.call('HINCRBY', key, 'attempts', 1)
  answer[#answer + 1] = useful[i]
  answer[#answer + 1] = redis.call('HGET', key, 'payload')
end
return answer
"""
)


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

    def __init__(self, queue: JobQueue, vitals: Heartbeat, settings: Settings) -> None:
        self.queue = queue
        self.connection: Redis = queue.connection
        self.vitals = vitals
        self.limits = settings
        self._script = self.connection.register_script(TAKE)

    def first(self, job_id: str, lane: Queue) -> Batch | None:
        """A batch that begins with a task already taken; interactive ones stay alone, others get company."""
        if lane.name == self.queue.interactive.name:
            return self._take(lane, 1, taken=job_id)
        self._await_company()
        return self._take(lane, self.limits.max_batch, taken=job_id)

    def urgent(self) -> Batch | None:
        """The interactive task that waits longest."""
        return self._take(self.queue.interactive, 1)

    def next(self) -> Batch | None:
        """What waits, up to a whole batch."""
        return self._take(self.queue.predict, self.limits.max_batch)

    def ahead(self) -> Batch | None:
        """The same, to be prepared while another batch runs: not at the cost of workers that could run it now."""
        most = self.limits.max_batch
        return self._take(self.queue.predict, most, left_to_each=most, may_be_alone=False)

    def _await_company(self) -> None:
        """Give others `max_wait_ms` to arrive."""
        give_up = time.monotonic() + self.limits.max_wait_ms / 1000
        while time.monotonic() < give_up and len(self.queue.predict) < self.limits.max_batch - 1:
            time.sleep(POLL_S)

    def _take(
        self, lane: Queue, most: int, *, left_to_each: int = 0, may_be_alone: bool = True, taken: str = ""
    ) -> Batch | None:
        """One round trip; see `TAKE`."""
        name, before = self.vitals.name, [taken] if taken else []
        is_alone, dropped, *found = self._script(
            keys=[lane.key, running_key(name), WORKERS],
            args=[most, left_to_each, time.time(), int(may_be_alone), name, job_key(""), *before],
        )
        for job_id in dropped:
            log.info("%s: nobody waits for it any more; dropped", text(job_id))
        if not found:
            return None
        payloads = zip(map(text, found[::2]), found[1::2], strict=True)
        return Batch({i: PredictionJob.from_payload(json.loads(one)) for i, one in payloads}, bool(is_alone))
