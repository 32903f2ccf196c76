"""The queue `train`: one request a project at a time, its progress, and its cancellation.

The queue is a list of names of runs, without their data. All of it is in Redis and may be lost: rounds are recorded in
the registry (backend/learning/round.py), triggers are derived anew. The heartbeats of training workers are here, too.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import redis
from redis import Redis

from backend.queue.connection import load_script, text
from backend.queue.keys import (
    LEARNING,
    QUEUED_CHANNEL,
    TRAINERS,
    TRAININGS,
    learning_cancel_key,
    learning_key,
    trigger_state_key,
)

log = logging.getLogger(__name__)
# Project and run; both become names of files.
TRAINING = re.compile(r"([0-9]{1,18}):([A-Za-z0-9-]{1,64})")
QUEUED, RUNNING = "queued", "running"
# Why a training was asked for.
BUTTON, COMMAND, CORRECTIONS, SCHEDULE = "button", "command", "corrections", "schedule"
# Points of the loss curve on the page.
MOST_POINTS = 120
# A training worker without a heartbeat for this long, in s, is gone.
LOST_AFTER_S = 15.0


@dataclass(frozen=True)
class Answer:
    """The answer to a request for a training.

    Attributes:
        run: id of the round that will serve it.
        is_new: False when it was folded into one that waits or runs.
    """

    run: str
    is_new: bool
    message: str


def new_run() -> str:
    """Name of a run: UTC to the microsecond, so that later names sort later."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


class TrainQueue:
    """Requests and progress behind one connection."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._request = load_script(connection, "request_training")
        self._end = load_script(connection, "end_training")

    def request(self, project: str, trigger: str) -> Answer:
        """Ask for a training; a second request is folded into the first and says so."""
        run = new_run()
        keys = [learning_key(project), LEARNING, TRAININGS]
        earlier_run = self._request(keys=keys, args=[run, trigger, time.time(), project])
        if earlier_run:
            name, state = text(earlier_run[0]), text(earlier_run[1])
            doing = "waits for a worker" if state == QUEUED else "is running"
            return Answer(
                name,
                False,
                f"Training {name} of project {project} {doing} already; this request is folded into it"
                + ("." if state == QUEUED else ": what is newer is looked at when it ends."),
            )
        self.connection.publish(QUEUED_CHANNEL, "")
        return Answer(run, True, f"Training {run} of project {project} was queued.")

    def take(self) -> tuple[str, str] | None:
        """Project and run of the training that waits longest."""
        while name := cast(bytes, self.connection.lpop(TRAININGS)):
            if training := TRAINING.fullmatch(name.decode(errors="replace")):
                return training[1], training[2]
            log.error("%r in the list of trainings is none; dropped", name[:200])
        return None

    def is_listed(self, project: str, run: str) -> bool:
        """Whether a run waits for a worker."""
        return self.connection.lpos(TRAININGS, f"{project}:{run}") is not None

    def put_back(self, project: str, run: str) -> None:
        """Queue a run again that a worker took but did not begin."""
        with self.connection.pipeline() as pipe:
            pipe.hset(learning_key(project), "requested_at", time.time())
            pipe.rpush(TRAININGS, f"{project}:{run}")
            pipe.execute()

    def revive(self, project: str, run: str, attempts: int, trigger: str) -> None:
        """Queue a run whose worker died, at the front."""
        facts: dict[Any, Any] = {"run": run, "state": QUEUED, "attempts": attempts, "trigger": trigger}
        with self.connection.pipeline() as pipe:
            pipe.hset(learning_key(project), mapping=facts)
            pipe.sadd(LEARNING, project)
            pipe.lpush(TRAININGS, f"{project}:{run}")
            pipe.publish(QUEUED_CHANNEL, "")
            pipe.execute()

    def current(self, project: str) -> dict[str, Any]:
        """Facts of a project's waiting or running training: run, state, trigger, stage, eta_s...; {} for none."""
        row = {text(name): text(value) for name, value in self.connection.hgetall(learning_key(project)).items()}
        facts: dict[str, Any] = dict(row)
        for name in ("attempts", "folded", "iteration", "of"):
            facts[name] = int(float(row.get(name) or 0))
        facts["eta_s"] = float(row["eta_s"]) if row.get("eta_s") else None
        facts["losses"] = json.loads(row.get("losses") or "{}")
        facts["curve"] = json.loads(row.get("curve") or "[]")
        return facts if row.get("run") else {}

    def projects(self) -> list[str]:
        """Projects that ever requested a training, as far as Redis still has them."""
        return sorted(text(member) for member in self.connection.smembers(LEARNING))

    def note(self, project: str, run: str, **facts: object) -> None:
        """Store facts (numbers and text) of a run's progress. None removes a fact."""
        key = learning_key(project)
        values: dict[Any, Any] = {name: _encode(value) for name, value in facts.items() if value is not None}
        # `run` goes along: a queue server that was restarted has forgotten it.
        self.connection.hset(key, mapping={"run": run, **values})
        if removed_names := [name for name, value in facts.items() if value is None]:
            self.connection.hdel(key, *removed_names)

    def end(self, project: str, run: str) -> str:
        """End a run; the trigger of a request that was folded into it meanwhile, "" for none."""
        return text(self._end(keys=[learning_key(project)], args=[run]))

    def cancel(self, project: str) -> str:
        """Cancel the waiting or running training of a project; its run's id, "" when there is none."""
        current = self.current(project)
        run = str(current.get("run", ""))
        if run:
            self.connection.set(learning_cancel_key(project), run, ex=24 * 3600)
        if current.get("state") == QUEUED:
            self.end(project, run)
        return run

    def is_cancelled(self, project: str, run: str) -> bool:
        return text(self.connection.get(learning_cancel_key(project))) == run


def _encode(value: object) -> str | int | float:
    return value if isinstance(value, str | int | float) else json.dumps(value)


class Progress:
    """Writes the progress of one run; while the queue server is away, only these notes are lost."""

    def __init__(self, queue: TrainQueue, project: str, run: str, worker: str = "") -> None:
        self.queue = queue
        self.project = project
        self.run = run
        self.worker = worker
        self.curve: list[tuple[int, float]] = []  # step and loss
        self.last: dict[str, Any] = {}

    def stage(self, stage: str) -> None:
        """Note that the round has begun a stage."""
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
        """Note the training's own progress.json: iteration, of, losses or the whole curve, eta_s, phase."""
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


def trainer_heartbeat(connection: Redis, worker: str) -> None:
    """Note that a training worker is alive."""
    now = time.time()
    connection.zadd(TRAINERS, {worker: now})
    connection.zremrangebyscore(TRAINERS, 0, now - 60 * LOST_AFTER_S)


def living_trainers(connection: Redis) -> list[str]:
    """Names of training workers that are alive, in order."""
    names: Any = connection.zrangebyscore(TRAINERS, time.time() - LOST_AFTER_S, "+inf")
    return sorted(text(name) for name in names)


def forget_trainer(connection: Redis, worker: str) -> None:
    """Remove a training worker that ends."""
    connection.zrem(TRAINERS, worker)


def read_trigger_state(connection: Redis, project: str) -> dict[str, Any]:
    """What the watcher last found in a project; {} when it has not looked yet.

    at (unix time), new (annotations newer than the newest snapshot), error, connected (whether one of its backends is
    ours), set (what was set in Label Studio last, for people), title (of the project).
    """
    row = {text(name): text(value) for name, value in connection.hgetall(trigger_state_key(project)).items()}
    if not row:
        return {}
    return {
        "at": float(row["at"]),
        "new": int(row.get("new", 0)),
        "error": row.get("error", ""),
        "connected": row.get("connected") == "1",
        "set": row.get("set", ""),
        "title": row.get("title", ""),
    }
