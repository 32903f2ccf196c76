"""Programs that a tool starts on this machine, and what their processes use, read from /proc. All end with the tool."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from backend.processes.parent_death import bound_command

STOP_S = 150.0


@contextlib.contextmanager
def running_program(
    name: str, command: list[str], environment: Mapping[str, str], logs: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with a log `<name>.log`; SIGTERM, then SIGKILL to its whole group at the end."""
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("ab") as output:
        process = subprocess.Popen(
            bound_command(command, logs / f".{name}.lock"),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    """Whether an address answers without an error."""
    try:
        return requests.get(url, timeout=3).ok
    except requests.RequestException:
        return False


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / 2**20, 1)


def processor_s(pid: int) -> float:
    """Processor time of all threads of a process since it began."""
    # Counted behind the program's name, which may hold spaces: utime and stime.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def as_png(image: np.ndarray) -> bytes:
    """A PNG file of an RGB uint8 H x W x 3 array."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
