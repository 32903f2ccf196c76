"""Who hands a finished prediction to Label Studio, so that it is stored once, whoever asks how often.

Label Studio stores every answer it gets, without a lock: three people who open one task at the same moment would get
three equal predictions. So a request *claims* its tasks. It answers with results only while it holds all claims; else,
or when the deadline passes first, it answers `{"results": []}` and what it held is *deferred*: pushed later through the
bulk import, once, by a worker (backend/worker/push.py).

A request for one task takes the claim over from one for many: somebody is looking at that task.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from backend.queue.connection import text
from backend.queue.job_store import job_key

DEFERRED = "transfiner:deferred"
PUSHING = "transfiner:pushing"
# After a push, requests that Label Studio prepared before it could see the pushed predictions are still on their way.
SETTLE_MS = 5000

# A claim is "<request>:<number of tasks>". ARGV: claim, its number of tasks, ms to live.
CLAIM = """
local held = {}
for i, job in ipairs(KEYS) do
  local key = 'transfiner:claim:' .. job
  local other = redis.call('GET', key)
  local size = other and tonumber(string.match(other, ':(%d+)$')) or 0
  local free = not other or other == ARGV[1] or (tonumber(ARGV[2]) == 1 and size > 1)
  local in_flight = redis.call('SISMEMBER', 'transfiner:pushing', job)
  if in_flight == 1 or redis.call('EXISTS', 'transfiner:pushed:' .. job) == 1 then free = false end
  if free then
    redis.call('SET', key, ARGV[1], 'PX', ARGV[3])
    redis.call('HDEL', 'transfiner:deferred', job)
  end
  held[i] = free and 1 or 0
end
return held
"""

# Lua: notes what became of a task on its record, not on one that has expired: it would come back without a lifetime.
MARK = """
local function mark(record, delivery)
  if redis.call('EXISTS', record) == 1 then redis.call('HSET', record, 'delivery', delivery) end
end
"""

# Gives the claims up and says which were still held. ARGV: claim, '1' to give up only if all are held, prefix of the
# records, what to note on the records of those given up or "".
RELEASE = (
    MARK
    + """
local held, all = {}, true
for i, job in ipairs(KEYS) do
  held[i] = redis.call('GET', 'transfiner:claim:' .. job) == ARGV[1] and 1 or 0
  all = all and held[i] == 1
end
if ARGV[2] == '1' and not all then return held end
for i, job in ipairs(KEYS) do
  if held[i] == 1 then
    redis.call('DEL', 'transfiner:claim:' .. job)
    if ARGV[4] ~= '' then mark(ARGV[3] .. job, ARGV[4]) end
  end
end
return held
"""
)

# Moves deferred tasks into the set of those being pushed; the ones that were claimed back meanwhile are left out.
TAKE = """
local taken = {}
for i, job in ipairs(KEYS) do
  taken[i] = redis.call('HEXISTS', 'transfiner:deferred', job)
  if taken[i] == 1 then redis.call('SADD', 'transfiner:pushing', job) end
end
return taken
"""


@dataclass(frozen=True)
class DeliveryClaim:
    """What one request asked to deliver.

    Attributes:
        token: "<request>:<number of tasks>", the value of the claims in Redis.
        job_ids: the tasks; some may be, or come to be, held by other requests.
    """

    token: str = ""
    job_ids: tuple[str, ...] = ()


class DeliveryClaims:
    """Claims and deferred tasks behind one connection."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._claim = connection.register_script(CLAIM)
        self._release = connection.register_script(RELEASE)
        self._take = connection.register_script(TAKE)
        self._note = connection.register_script(
            MARK + "for _, job in ipairs(KEYS) do mark(ARGV[1] .. job, ARGV[2]) end"
        )

    def claim(self, request_id: str, job_ids: Sequence[str], *, lifetime_s: float) -> DeliveryClaim:
        """Claim what is free; a claim ends by itself after `lifetime_s` should this process die."""
        claim = DeliveryClaim(f"{request_id}:{len(job_ids)}", tuple(job_ids))
        if job_ids:
            self._claim(keys=list(job_ids), args=[claim.token, len(job_ids), int(lifetime_s * 1000)])
        return claim

    def release_if_all_held(self, claim: DeliveryClaim, job_ids: Sequence[str]) -> bool:
        """Before answering with results for `job_ids`: True, and the claims are given up, if all are still ours."""
        if not claim.job_ids or not job_ids:
            return True
        return all(self._give_up(claim, job_ids, only_all=True, delivery="answered"))

    def defer(self, claim: DeliveryClaim, facts: dict[str, dict[str, Any]]) -> list[str]:
        """Instead of answering: hand what is still ours to the pusher. The ids deferred.

        Args:
            facts: by job id, what the pusher needs: project, task.
        """
        ids = list(facts)
        if not ids or not claim.job_ids:
            return []
        held = self._give_up(claim, ids)
        ours = [job_id for job_id, mine in zip(ids, held, strict=True) if mine]
        if ours:
            now = time.time()
            self.connection.hset(DEFERRED, mapping={i: json.dumps({**facts[i], "since": now}) for i in ours})
            self._mark(ours, "deferred")
        return ours

    def abandon(self, claim: DeliveryClaim) -> None:
        """Give up what is still ours; nobody has to deliver it."""
        if claim.job_ids:
            self._give_up(claim, claim.job_ids)

    def is_claimed(self, job_id: str) -> bool:
        return bool(self.connection.exists(f"transfiner:claim:{job_id}"))

    def deferred(self) -> dict[str, dict[str, Any]]:
        """By job id: project, task, since, and what the pusher noted."""
        return {text(key): json.loads(value) for key, value in self.connection.hgetall(DEFERRED).items()}

    def take(self, job_ids: Sequence[str]) -> list[str]:
        """For the pusher: those that it may push now; nobody else delivers them until `pushed` or `give_back`."""
        taken = self._take(keys=list(job_ids)) if job_ids else []
        return [job_id for job_id, ours in zip(job_ids, taken, strict=True) if ours]

    def pushed(self, job_ids: Sequence[str]) -> None:
        with self.connection.pipeline() as pipe:
            for job_id in job_ids:
                pipe.hdel(DEFERRED, job_id)
                pipe.srem(PUSHING, job_id)
                pipe.set(f"transfiner:pushed:{job_id}", "1", px=SETTLE_MS)
            pipe.execute()
        self._mark(job_ids, "pushed")

    def give_back(self, job_ids: Sequence[str], *, uncertain: bool) -> None:
        """After a failed push: they stay deferred. `uncertain`: Label Studio may have stored them all the same."""
        with self.connection.pipeline() as pipe:
            for job_id in job_ids:
                pipe.srem(PUSHING, job_id)
            pipe.execute()
        entries = self.deferred()
        changed: dict[Any, Any] = {
            i: json.dumps({**entries[i], "uncertain": True}) for i in job_ids if uncertain and i in entries
        }
        if changed:
            self.connection.hset(DEFERRED, mapping=changed)

    def drop(self, job_ids: Sequence[str]) -> None:
        """There is nothing to deliver for them any more."""
        if job_ids:
            with self.connection.pipeline() as pipe:
                pipe.hdel(DEFERRED, *job_ids)
                pipe.srem(PUSHING, *job_ids)
                pipe.execute()

    def _give_up(
        self, claim: DeliveryClaim, job_ids: Sequence[str], *, only_all: bool = False, delivery: str = ""
    ) -> list[int]:
        """For each 1 if it was still ours; see `RELEASE`."""
        held: list[int] = self._release(keys=list(job_ids), args=[claim.token, int(only_all), job_key(""), delivery])
        return held

    def _mark(self, job_ids: Sequence[str], delivery: str) -> None:
        if job_ids:
            self._note(keys=list(job_ids), args=[job_key(""), delivery])
