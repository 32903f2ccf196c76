"""The label configs of waiting tasks, each stored once: the one of LVIS takes 60 kB, and a request has 5,000 tasks."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from redis import Redis
from redis.client import Pipeline

from backend.queue.connection import text
from backend.queue.keys import config_key

# Renewed whenever tasks with it are queued. Longer than any task waits, but for deferred ones without any worker.
LIFETIME_S = 8 * 24 * 3600
# A worker keeps this many of those it saw last.
MOST_KEPT = 16


@functools.lru_cache(maxsize=MOST_KEPT)
def config_digest(xml: str) -> str:
    """What a job names its label config by."""
    return hashlib.sha256(xml.encode(errors="surrogatepass")).hexdigest()[:32]


class LabelConfigs:
    """Label configs behind one connection."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._kept: OrderedDict[str, str] = OrderedDict()

    def store(self, configs: Iterable[str], pipe: Pipeline) -> None:
        """Add the label configs of tasks that are being queued to a round trip."""
        for xml in set(configs):
            pipe.set(config_key(config_digest(xml)), xml, ex=LIFETIME_S)

    def read(self, digest: str) -> str:
        """The XML; "" when the queue server has forgotten it."""
        xml = self._kept.pop(digest, "") or text(self.connection.get(config_key(digest)))
        if xml:
            self._kept[digest] = xml
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return xml
