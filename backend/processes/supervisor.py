"""One process tree from one command: start children in order, restart those that die, end all of them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from backend.errors import StartError
from backend.processes.parent_death import ends_with_parent
from model.files import write_text

log = logging.getLogger(__name__)
POLL_S = 0.1
# Environment variable with the file that lists paused children; set by the supervisor only, so it is no setting.
VARIABLE = "SERVICE_PAUSED_PARTS"


@dataclass
class Child:
    """One supervised program.

    Attributes:
        standard_input: written to it once, for secrets that must not be on a command line.
        grace_s: time between SIGTERM and SIGKILL.
        restarts: deaths within `RESTART_WINDOW_S` after which the child counts as broken: during the start the whole
            tree ends; later the child is paused for longer and longer, and the others go on.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    standard_input: bytes | None = None
    ready: Callable[[], bool] = lambda: True
    start_timeout_s: float = 60.0
    grace_s: float = 10.0
    stop_signal: int = signal.SIGTERM
    restarts: int = 5


RESTART_WINDOW_S = 60.0
# A broken child is tried again after this many s, doubling up to the second number.
PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0


class PausedParts:
    """Writes the file that lists paused children, for `paused_parts` in the API."""

    def __init__(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="transfiner-parts-")
        weakref.finalize(self, folder.cleanup)
        self.file = Path(folder.name) / "paused.json"
        self._reasons: dict[str, str] = {}

    def note(self, name: str, reason: str = "") -> None:
        """Note that a part is paused, with the reason for people; without a reason it runs again.

        An error of writing is only logged: a full disk, or a deleted temporary folder, must not end the service.
        """
        if self._reasons.get(name, "") == reason:
            return
        self._reasons[name] = reason
        try:
            self.file.parent.mkdir(mode=0o700, exist_ok=True)
            write_text(self.file, json.dumps({part: text for part, text in self._reasons.items() if text}))
        except OSError as error:
            log.error("the API cannot be told what is paused: %s", error)


def paused_parts() -> list[str]:
    """A sentence for each part of this service that is paused; [] where no supervisor started this process."""
    try:
        reasons = json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return []
    return [f"Paused: {reason}. Its own messages are in the log of `transfiner serve`." for reason in reasons.values()]


class Supervisor:
    """Runs children until a signal comes, or until one of them cannot be started.

    `run()` is for the main thread of a program; it returns the exit code. Every child leads a process group of its
    own (Ctrl-C in a terminal reaches only the supervisor, which then ends them in reverse order), and the kernel ends
    the children should the supervisor itself be killed.
    """

    def __init__(self, children: Sequence[Child], *, when_ready: Callable[[], None] = lambda: None) -> None:
        self.children = list(children)
        self.when_ready = when_ready
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.deaths: dict[str, list[float]] = {child.name: [] for child in self.children}
        self.stopping = False
        self.is_ready = False
        # Children that wait for their next start: when (time.monotonic()), and how long the last wait was.
        self.start_at: dict[str, float] = {}
        self.started_at: dict[str, float] = {}
        self.pauses: dict[str, float] = {}
        self.paused_parts = PausedParts()

    def run(self) -> int:
        """Start all, watch until asked to stop. 0 after a signal, 1 when a child cannot be started."""
        with self._signals():
            try:
                for child in self.children:
                    self._start(child)
                    self._await_ready(child)
                self.is_ready = True
                if not self.stopping:
                    self.when_ready()
                while not self.stopping:
                    self._revive()
                    time.sleep(POLL_S)
                return 0
            except StartError as error:
                log.error("%s", error)
                return 1
            finally:
                self.stop()

    def stop(self) -> None:
        """End every child, the last started first; SIGKILL for those that outlive their grace."""
        for child in reversed(self.children):
            if (process := self.processes.pop(child.name, None)) is not None:
                _end(process, child)

    def _start(self, child: Child) -> None:
        if self.stopping:
            return
        try:
            process = subprocess.Popen(
                list(child.command),
                env={**os.environ, VARIABLE: str(self.paused_parts.file), **child.environment},
                stdin=subprocess.PIPE if child.standard_input else subprocess.DEVNULL,
                # Standard output is for the command itself; children write to standard error.
                stdout=sys.stderr.fileno(),
                start_new_session=True,
                # The supervisor has no threads, so running Python between fork and exec is safe.
                preexec_fn=ends_with_parent(child.stop_signal),
            )
        except OSError as error:
            raise StartError(f"Cannot start {child.name} ({child.command[0]}): {error}.") from error
        self.processes[child.name] = process
        self.started_at[child.name] = time.monotonic()
        if child.standard_input and process.stdin:
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(child.standard_input)
        log.info("started %s (pid %d)", child.name, process.pid)

    def _await_ready(self, child: Child) -> None:
        give_up = time.monotonic() + child.start_timeout_s
        while not self.stopping and not child.ready():
            self._revive()
            if time.monotonic() > give_up:
                raise StartError(
                    f"{child.name} was not ready after {child.start_timeout_s:.0f} s.", "Its own messages are above."
                )
            time.sleep(POLL_S)

    def _revive(self) -> None:
        """Start again what died, each when its wait is over."""
        for child in self.children:
            process = self.processes.get(child.name)
            # It has lived for so long that its earlier deaths no longer count.
            is_steady = time.monotonic() - self.started_at.get(child.name, 0.0) >= RESTART_WINDOW_S
            if process is not None and process.poll() is None and is_steady:
                self.pauses.pop(child.name, None)
                self.paused_parts.note(child.name)
            if process is None or process.poll() is None or self.stopping:
                continue
            if child.name not in self.start_at:
                self.start_at[child.name] = time.monotonic() + self._wait_after_death(child, process.returncode)
            if time.monotonic() >= self.start_at[child.name]:
                del self.start_at[child.name]
                try:
                    self._start(child)
                except StartError as error:
                    # A failed start, for lack of memory for example, counts as one more death.
                    if not self.is_ready:
                        raise
                    log.error("%s", error)

    def _wait_after_death(self, child: Child, code: int) -> float:
        """Count a death; how long to wait until the next start, in s."""
        now = time.monotonic()
        recent = [moment for moment in self.deaths[child.name] if now - moment < RESTART_WINDOW_S] + [now]
        self.deaths[child.name] = recent
        ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if len(recent) <= child.restarts and child.name not in self.pauses:
            log.error("%s ended (%s); restarting it (%d of %d)", child.name, ending, len(recent), child.restarts)
            # The first restart is immediate; later ones back off, so that a broken child does not spin.
            return 0.0 if len(recent) == 1 else min(0.25 * 2 ** len(recent), 5.0)
        reason = f"{child.name} ended {len(recent)} times within {RESTART_WINDOW_S:.0f} s (last: {ending})"
        if not self.is_ready:
            raise StartError(f"{reason}; giving up.", "Its own messages are above.")
        pause_s = self.pauses[child.name] = min(self.pauses.get(child.name, PAUSE_S / 2) * 2, LONGEST_PAUSE_S)
        log.error("%s; paused for %.0f s, the others go on", reason, pause_s)
        self.paused_parts.note(child.name, f"{reason}, tried again after {pause_s:.0f} s")
        return pause_s

    def _request_stop(self, number: int, _frame: FrameType | None) -> None:
        if not self.stopping:
            log.info("%s: stopping", signal.Signals(number).name)
        self.stopping = True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {number: signal.signal(number, self._request_stop) for number in names}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes], child: Child) -> None:
    if process.poll() is None:
        process.send_signal(child.stop_signal)
        try:
            process.wait(child.grace_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not end within %.0f s; killing it", child.name, child.grace_s)
    # End the rest of its process group, too: processes that the child started.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log.info("ended %s", child.name)


def python_module(module: str, *arguments: str) -> list[str]:
    """Command line that runs `module` with this very interpreter."""
    return [sys.executable, "-m", module, *arguments]
