"""The thread of a worker that sends heartbeats, takes over from dead workers and pushes deferred predictions."""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path

import redis

from backend.queue.job_queue import JobQueue
from backend.queue.recovery import Heartbeat, OrphanSearch, absolve
from backend.settings import Settings
from backend.worker.model_cache import WarmModels
from backend.worker.prompt_runner import PromptRunner
from backend.worker.push import Pusher

log = logging.getLogger(__name__)
MOST_BEAT_S = 1.5


class MaintenanceThread(threading.Thread):
    """Runs beside the batches until `end`.

    Args:
        pushes: whether deferred predictions are pushed, too; not from a worker that must answer within tenths of a
            second.
    """

    def __init__(
        self,
        queue: JobQueue,
        vitals: Heartbeat,
        settings: Settings,
        models: WarmModels | PromptRunner,
        *,
        pushes: bool = True,
    ) -> None:
        super().__init__(name="maintenance", daemon=True)
        self.queue = queue
        self.vitals = vitals
        self.models = models
        self.born = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        self.stop = threading.Event()
        self.pushes = pushes
        self.pusher = threading.Thread(
            target=Pusher(queue, settings, vitals.name).run, args=(self.stop,), name="pusher", daemon=True
        )

    def run(self) -> None:
        if self.pushes:
            self.pusher.start()
        orphans = OrphanSearch(self.queue)
        while not self.stop.is_set():
            try:
                present = {"version": self.models.version, "models": self.models.facts}
                memory = {"memory_mib": _memory_mib(), "gpu_memory_mib": _gpu_memory_mib()}
                self.vitals.beat({**self.born, **present, **memory})
                absolve(self.queue, self.vitals.name)
                orphans.run()
            except redis.RedisError as error:
                log.warning("queue server: %s", error)
            except Exception:
                log.exception("looking after the queue failed; trying again")
            self.stop.wait(min(MOST_BEAT_S, self.vitals.lost_after_s / 4))

    def end(self) -> None:
        self.stop.set()
        self.join(5)
        if self.pushes:
            self.pusher.join(5)


def _gpu_memory_mib() -> int:
    """What torch holds of the GPU, 0 without one; torch is not imported here, only looked at."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(sum(torch.cuda.memory_reserved(n) for n in range(torch.cuda.device_count()))) // 2**20


def _memory_mib() -> int:
    """Resident memory now; elsewhere than on Linux its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return pages * resource.getpagesize() // 2**20
