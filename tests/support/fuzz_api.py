"""`make fuzz`: thousands of hostile inputs to a real API process with a real worker behind it, and a report.

    make fuzz ARGS='--inputs 10000 --report output/fuzz.json'

A quarter of the inputs each: cases of schemathesis from our own OpenAPI description, any JSON, mutations of what a real
Label Studio sent, and any bytes. Fails when an answer has a 5xx status, when one takes longer than `HANG_S`, or when
the API's memory grows by more than `GROWTH_MIB` after the first tenth of the inputs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from backend.processes.embedded_redis import EmbeddedRedis, free_port
from backend.processes.parent_death import ends_with_parent
from tests.backend.api.test_hostile_input import BODIES, JSON, PATHS, mutate
from tests.support.service import ROOT, FakeWorkers, wait_until

HANG_S = 20.0
GROWTH_MIB = 24
LOOPBACK = {"TRANSFINER_IMAGE_TIMEOUT_S": "2", "TRANSFINER_PREDICT_DEADLINE_S": "10"}


class Tally:
    """Sends inputs and remembers what came back."""

    def __init__(self, address: str, pid: int, inputs: int) -> None:
        self.address, self.pid, self.inputs = address, pid, inputs
        self.session = requests.Session()
        self.sent = 0
        self.statuses: Counter[str] = Counter()
        self.longest_s = 0.0
        self.bad: list[dict[str, Any]] = []
        self.memory_mib: list[float] = [self.memory()]
        self.begun = time.monotonic()

    def memory(self) -> float:
        """Resident MiB of the API process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGESIZE") / 2**20, 1)

    def send(self, method: str, path: str, **body: Any) -> None:
        begun = time.monotonic()
        try:
            answer = self.session.request(method, self.address + path, timeout=HANG_S, allow_redirects=False, **body)
            status, text = answer.status_code, answer.text
        except requests.RequestException as error:
            status, text = 0, repr(error)
        self.sent += 1
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        self.statuses[f"{path.split('/')[1]} {status}"] += 1
        # Learning is off here, which /webhook says with 501.
        if status == 0 or (status >= 500 and status != 501) or "Traceback" in text:
            self.bad.append(
                {"request": f"{method} {path}", "status": status, "body": str(body)[:2000], "answer": text[:300]}
            )
        if self.sent % max(1, self.inputs // 10) == 0:
            self.memory_mib.append(self.memory())
            print(f"{self.sent} inputs, {self.memory_mib[-1]} MiB, {len(self.bad)} bad", flush=True)

    def report(self) -> dict[str, Any]:
        growth = self.memory_mib[-1] - self.memory_mib[min(1, len(self.memory_mib) - 1)]
        return {
            "inputs": self.sent,
            "seconds": round(time.monotonic() - self.begun, 1),
            "statuses": dict(self.statuses),
            "longest_s": round(self.longest_s, 3),
            "api_memory_mib": self.memory_mib,
            "growth_mib": round(growth, 1),
            "bad": self.bad[:20],
            "bad_count": len(self.bad),
            "ok": not self.bad and growth <= GROWTH_MIB and self.longest_s < HANG_S,
        }


def examples(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Plain generation: nothing is shrunk or kept, since the failing input is in the report."""
    return settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def fuzz(tally: Tally) -> None:
    """All four kinds of input."""
    quarter = tally.inputs // 4
    by_description(tally, quarter)

    @examples(quarter)
    @given(path=st.sampled_from(PATHS), body=JSON)
    def any_json(path: str, body: Any) -> None:
        tally.send("POST", path, data=json.dumps(body).encode("utf-8", "surrogatepass"))

    @examples(quarter)
    @given(path=st.sampled_from(PATHS), data=st.binary(max_size=300))
    def any_bytes(path: str, data: bytes) -> None:
        tally.send("POST", path, data=data)

    any_json()
    any_bytes()
    mutations(tally)


def mutations(tally: Tally) -> None:
    """Changed recordings, until all inputs are used up."""
    luck = random.Random(7)
    while tally.sent < tally.inputs:
        path, body = copy.deepcopy(luck.choice(BODIES))
        for _ in range(luck.randint(1, 4)):
            mutate(body, luck)
        tally.send("POST", path, data=json.dumps(body).encode("utf-8", "surrogatepass"))


def by_description(tally: Tally, count: int) -> None:
    schema = schemathesis.openapi.from_url(f"{tally.address}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    for operation in operations:

        @examples(count // len(operations))
        @given(case=operation.as_strategy())
        def cases(case: Any) -> None:
            arguments = case.as_transport_kwargs(base_url=tally.address)
            path = arguments.pop("url").removeprefix(tally.address)
            arguments.pop("cookies", None)
            tally.send(arguments.pop("method"), path, **arguments)

        cases()


@contextmanager
def service() -> Iterator[tuple[str, int]]:
    """Queue server, a worker with the fake model and `transfiner api`; address and pid of the API."""
    server = EmbeddedRedis()
    started = ends_with_parent()
    queue = subprocess.Popen(server.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=started)
    assert queue.stdin
    with queue.stdin as stdin:
        stdin.write(server.configuration)
    wait_until(server.ready)
    with TemporaryDirectory() as folder:
        facts = {"name": "fake", "version": "fake-1", "classes": ["gear", "leaf"], "digest": "0" * 64}
        (Path(folder) / "metadata.json").write_text(json.dumps(facts))
        port = free_port()
        variables = {
            **os.environ,
            **LOOPBACK,
            "TRANSFINER_REDIS_URL": server.url,
            "TRANSFINER_MODEL": folder,
            "TRANSFINER_PORT": str(port),
            "TRANSFINER_LOG_LEVEL": "ERROR",
        }
        os.environ |= LOOPBACK
        workers = FakeWorkers(server.url, Path(folder))
        workers.add(1, max_batch=16, log_level="ERROR")
        api = subprocess.Popen(
            [sys.executable, "-m", "backend.cli", "api"], env=variables, cwd=ROOT, preexec_fn=started
        )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: _ready(address), give_up_s=600)
            yield address, api.pid
        finally:
            workers.end()
            for process in (api, queue):
                process.terminate()
                process.wait()


def _ready(address: str) -> bool:
    try:
        return requests.get(f"{address}/ready", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--report", type=Path, default=ROOT / "output" / "fuzz.json")
    parser.add_argument("--mutations-only", action="store_true", help="leave out the three other kinds")
    wanted = parser.parse_args()
    with service() as (address, pid):
        tally = Tally(address, pid, wanted.inputs)
        (mutations if wanted.mutations_only else fuzz)(tally)
        report = tally.report()
    wanted.report.parent.mkdir(parents=True, exist_ok=True)
    wanted.report.write_text(json.dumps(report, indent=2))
    print(json.dumps({name: value for name, value in report.items() if name != "bad"}, indent=2))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
