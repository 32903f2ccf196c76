"""One `transfiner demo` as a process: its address and login, its API, and the processes it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from backend.processes.label_studio_server import LabelStudioServer
from integration.label_studio.client import LabelStudioClient

ROOT = Path(__file__).resolve().parents[2]
# A hung start must end the test. On two busy cores the first start takes some minutes.
START_LIMIT_S = 1200.0
STOP_LIMIT_S = 120.0
READY = re.compile(
    r"Login (\S+), password (\S+)\n.*photographs: (http://[\d.:]+)/projects/(\d+)/data\n"
    r".*scenes: \S+/projects/(\d+)/data"
)


@dataclass
class RunningDemo:
    """Start with `start()`; `stop()` is Ctrl-C. `project` is the one of scenes; `variables` join its environment."""

    folder: Path
    port: int
    backend_port: int
    images: int
    url: str = ""
    project: int = 0
    photographs: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    email: str = ""
    password: str = ""
    process: subprocess.Popen[bytes] | None = None
    output: Path = field(init=False)

    def __post_init__(self) -> None:
        self.output = self.folder / "terminal.txt"

    def start(self) -> None:
        """Run the command and read its one line; an error shows everything it printed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = ["--port", str(self.port), "--backend-port", str(self.backend_port)]
        command = [sys.executable, "-m", "backend.cli", "demo", *ports]
        command += ["--images", str(self.images), "--folder", str(self.folder / "demo")]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **self.variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        give_up = time.monotonic() + START_LIMIT_S
        while not (match := READY.search(self.output.read_text(errors="replace"))):
            assert self.process.poll() is None, f"the demo ended:\n{self.everything_printed()}"
            assert time.monotonic() < give_up, f"the demo did not get ready:\n{self.everything_printed()}"
            time.sleep(0.2)
        self.email, self.password, self.url = match[1], match[2], match[3]
        self.photographs, self.project = int(match[4]), int(match[5])

    def stop(self) -> int:
        """Ctrl-C, as the terminal sends it; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_LIMIT_S)
        finally:
            self.process.kill()

    @property
    def token(self) -> str:
        """The API key of Label Studio."""
        return LabelStudioServer(self.folder / "demo" / "label-studio", self.port).login.token

    def client(self) -> LabelStudioClient:
        return LabelStudioClient(self.url, self.token)

    def descendants(self) -> set[int]:
        """Process ids of everything below the command."""
        assert self.process is not None
        pids = {self.process.pid}
        parents = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdigit()}
        while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
            pids |= more
        return pids - {self.process.pid}

    def everything_printed(self) -> str:
        logs = sorted((self.folder / "demo" / "log").glob("*.log"))
        parts = [self.output, *logs]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in parts)


def is_running(pid: int) -> bool:
    """Whether a process does anything still (one that only waits to be reaped does not)."""
    try:
        os.kill(pid, 0)
        return _field(Path(f"/proc/{pid}"), 0) != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _parent(process: Path) -> int:
    try:
        return int(_field(process, 1))
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended meanwhile


def _field(process: Path, number: int) -> str:
    """Of /proc/PID/stat, counted behind the program's name, which may hold spaces."""
    return (process / "stat").read_text().rpartition(")")[2].split()[number]
