"""What people in Label Studio do: ask for predictions, and ask again for tasks that have none yet."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests

from backend.devtools.soak.harness import ServiceHarness

CHUNK = 6
# Pushes that are on their way get this long before anybody asks again.
PATIENCE_S = 3.0
SETTLE_S = 3.0
WIDTH_PX = 32


@dataclass
class Verdict:
    """What became of the tasks of one fault; nothing may be lost, doubled or left without a reason."""

    fault: str
    tasks: int
    stored_once: int
    failed: dict[int, str]
    lost: list[int]
    doubled: list[int]
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return not self.lost and not self.doubled


class Annotators:
    """Asks for `count` tasks until each is stored or has failed with a reason; stores answers as Label Studio does.

    Args:
        asks_again: also for tasks that were answered and not stored; else only where the request was refused.
    """

    def __init__(self, harness: ServiceHarness, first: int, count: int, *, asks_again: bool = True) -> None:
        self.asks_again = asks_again
        self.answered: set[int] = set()
        self.must_fail: set[int] = set()
        self.harness = harness
        self.ids = list(range(first, first + count))
        self.widths = dict.fromkeys(self.ids, WIDTH_PX)
        self.failed: dict[int, str] = {}
        self.refused = 0
        self._pool = ThreadPoolExecutor(8)
        self._thread = threading.Thread(target=self._ask_until_done, daemon=True)
        self.begun = time.monotonic()
        self.seconds = 0.0

    def start(self) -> Annotators:
        self._thread.start()
        return self

    def wait(self, give_up_s: float) -> Annotators:
        """Until every task is stored or has a reason."""
        self._thread.join(give_up_s)
        self.seconds = time.monotonic() - self.begun
        return self

    def verdict(self, fault: str) -> Verdict:
        """What became of the tasks; `SETTLE_S` after the wait, because copies come late."""
        stored = self.harness.label_studio.stored()
        return Verdict(
            fault,
            len(self.ids),
            stored_once=sum(stored[number] == 1 for number in self.ids),
            failed=dict(self.failed),
            lost=[n for n in self.ids if (not stored[n] or n in self.must_fail) and not self.failed.get(n)],
            doubled=[n for n in self.ids if stored[n] > 1],
            seconds=round(self.seconds, 1),
            notes={"requests refused": self.refused},
        )

    def _open(self) -> list[int]:
        stored = self.harness.label_studio.stored()
        return [number for number in self.ids if not stored[number] and number not in self.failed]

    def _ask_until_done(self) -> None:
        while pending := self._open():
            pending = [number for number in pending if self.asks_again or number not in self.answered]
            chunks = [pending[start : start + CHUNK] for start in range(0, len(pending), CHUNK)]
            list(self._pool.map(self._ask, chunks))
            end = time.monotonic() + PATIENCE_S
            while self._open() and time.monotonic() < end:
                time.sleep(0.1)

    def _image(self, number: int) -> str:
        return f"{self.harness.images.url}/data/upload/{self.widths[number]}/{number}.png"

    def _ask(self, numbers: list[int]) -> None:
        try:
            self.harness.set_up_project()  # as Label Studio does each time
            facts = self.harness.predict({number: self._image(number) for number in numbers}, timeout_s=100)
        except requests.RequestException:
            self.refused += 1
            time.sleep(0.5)
            return
        self.answered.update(numbers)
        for error in facts.get("errors", ()):
            self.failed[int(error["task"])] = str(error["error"])
        results = facts["results"]
        if len(results) == len(numbers):
            rows = [{"task": n, **row} for n, row in zip(numbers, results, strict=True) if row]
            self.harness.label_studio.store(rows)
