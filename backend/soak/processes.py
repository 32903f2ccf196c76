"""What a process of this machine uses: memory and processor time, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path


def memory_mib(pid: int) -> float:
    """Resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / 2**20, 1)


def processor_s(pid: int) -> float:
    """Processor time of all its threads since it began."""
    # Counted behind the program's name, which may hold spaces: utime and stime.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def child_of(pid: int) -> int:
    """gunicorn's arbiter does nothing but watch; its child answers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(children[0]) if children else pid
