"""A clock of the wall that can be stepped in running processes, and what a step does to the queue server.

`python -m backend.devtools.soak.clock FILE MODULE ARGUMENTS` runs a module on the clock of a file.
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

from redis import Redis

OFFSET = struct.Struct("d")
# A server whose clock steps finds every lifetime shorter by the step, as this does in one moment.
STEP_LIFETIMES = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then redis.call('PEXPIRE', key, left - tonumber(ARGV[1])) end
end
"""


class SteppedClock:
    """The offset of all clocks of a stage, in a file that its processes share."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset_s = 0.0
        file.write_bytes(OFFSET.pack(0.0))

    def step(self, seconds: float, connection: Redis) -> None:
        """Step the clocks of all processes that follow, and the queue server's, forward (or back)."""
        self.offset_s += seconds
        with self.file.open("r+b") as opened:
            opened.write(OFFSET.pack(self.offset_s))
        connection.eval(STEP_LIFETIMES, 0, int(seconds * 1000))


def follow(file: Path) -> None:
    """Make `time.time` of this process follow a stepped clock."""
    true_time = time.time
    with file.open("rb") as opened:
        shared = mmap.mmap(opened.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    time.time = lambda: true_time() + float(OFFSET.unpack(shared[:])[0])


if __name__ == "__main__":
    follow(Path(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__")
