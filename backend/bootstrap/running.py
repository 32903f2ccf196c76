"""Run one long command with its progress visible and its whole output in a log."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

REFRESH_S = 0.5
HEARTBEAT_S = 20.0  # how often a log without a terminal gets a sign of life
LINE_COLUMNS = 100


class Progress:
    """One line with the progress of a step: on a terminal rewritten in place, elsewhere repeated now and then."""

    def __init__(self, title: str, stream: TextIO = sys.stdout) -> None:
        self.title, self.stream = title, stream
        self.doing = "starting"
        self.started_s = time.monotonic()
        self._shown_s = -HEARTBEAT_S

    def show(self, *, closing_word: str = "") -> None:
        """Print the progress, or `closing_word` in its place."""
        elapsed_s = time.monotonic() - self.started_s
        text = f"  {self.title}: {closing_word or self.doing}  [{elapsed_s:.0f} s]"
        if self.stream.isatty():
            columns = min(LINE_COLUMNS, shutil.get_terminal_size().columns - 1)  # a wrapped line cannot be rewritten
            self.stream.write(f"\r{text[:columns]:<{columns}}" + ("\n" if closing_word else ""))
        elif closing_word or elapsed_s - self._shown_s >= HEARTBEAT_S:
            self.stream.write(text + "\n")
            self._shown_s = elapsed_s
        self.stream.flush()


def run_visibly(
    command: list[str], *, title: str, log: Path, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run `command`, show its progress, append its output to `log`; returns (exit status, output)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    progress, output = Progress(title), io.StringIO()
    with log.open("a", encoding="utf-8") as record, _start(command, environment) as process:
        record.write(f"$ {' '.join(command)}\n")
        reader = threading.Thread(target=_drain, args=(process, progress, output), daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                progress.show()
                time.sleep(REFRESH_S)
        except BaseException:
            process.terminate()
            raise
        finally:
            reader.join(timeout=5)
            record.write(output.getvalue())
    if process.returncode < 0:
        output.write(f"killed by signal {-process.returncode}\n")
    progress.show(closing_word="done" if process.returncode == 0 else "failed")
    return process.returncode, output.getvalue()


def _start(command: list[str], environment: dict[str, str] | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
    )


def _drain(process: subprocess.Popen[str], progress: Progress, output: io.StringIO) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        progress.doing = line.strip() or progress.doing
        output.write(line)
