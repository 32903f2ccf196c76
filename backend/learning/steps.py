"""A step of a round as a process of its own: watched, stopped on demand, gone when its worker is gone.

The programs of a round's heavy steps. Each is a process of its own, so the worker that watches needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.settings import Settings

log = logging.getLogger(__name__)
POLL_S = 0.25
# A child asked to stop saves its state first; on a busy machine one iteration takes seconds.
STOP_GRACE_S = 120.0
LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class ChildResult:
    """How a child ended.

    Attributes:
        code: exit status; negative: the signal that killed it.
        stopped_for: why it was asked to stop; "" when it was not.
        tail: its last lines.
    """

    code: int
    stopped_for: str
    tail: str


def run_child(
    command: Sequence[str], folder: Path, name: str, *, look: Callable[[], None], stop_because: Callable[[], str]
) -> ChildResult:
    """Run `command` to its end; its output goes to FOLDER/<name>.log.

    Args:
        look: called a few times a second, e.g. to read the child's progress.
        stop_because: a reason ends the child politely; "" lets it go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name}.log"
    bound = [
        sys.executable,
        "-m",
        "backend.processes.exec_with_parent",
        str(os.getpid()),
        str(folder / f".{name}.lock"),
    ]
    with output.open("ab") as stream:
        child = subprocess.Popen(
            [*bound, *command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    reason = ""
    try:
        while child.poll() is None and not (reason := stop_because()):
            look()
            time.sleep(POLL_S)
        look()
    finally:
        _end(child)
    return ChildResult(child.returncode, reason, _tail(output))


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("the child did not end within %.0f s; killing it", STOP_GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # What it started itself goes too.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(output: Path) -> str:
    return "\n".join(output.read_text(errors="replace").strip().splitlines()[-LOG_TAIL_LINES:])


VERDICT_FILE = "verdict.json"
# More images cost time and hardly change the weights.
CALIBRATION_IMAGES = 100
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class FinetuneRequest:
    """What a finetuning is given.

    Attributes:
        parent: checkpoint directory it starts from.
        snapshot: its data.
        out: its folder; a state left there by a killed attempt is gone on with.
        version: name of what it makes.
        classes: by name, in the order of the label config.
        replay: earlier snapshots.
    """

    parent: Path
    snapshot: Path
    out: Path
    version: str
    classes: tuple[str, ...]
    replay: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FewShotRequest:
    """What a few-shot learning is given.

    Attributes:
        base: checkpoint whose detector learns. incumbent: checkpoint that serves.
        snapshot: its data. out: its folder.
        classes: by name, in the order of the label config.
    """

    base: Path
    incumbent: Path
    snapshot: Path
    out: Path
    classes: tuple[str, ...]


@dataclass(frozen=True)
class GateRequest:
    """What the gate is given: checkpoint directories, the snapshot with the hold-out, earlier snapshots.

    `folds`: what a cross-validation found, where the training wrote that.
    """

    candidate: Path
    incumbent: Path | None
    best: Path | None
    snapshot: Path
    earlier: tuple[Path, ...]
    out: Path
    folds: Path | None = None


class Steps:
    """Command lines of the real programs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def finetune_command(self, work: FinetuneRequest) -> list[str]:
        """`transfiner finetune`, under torchrun for several processes."""
        request = {
            "active": str(work.parent),
            "snapshot": str(work.snapshot),
            "out": str(work.out),
            "classes": list(work.classes),
            "replay": [str(path) for path in work.replay],
            "version": work.version,
            "base_sets": self.settings.finetune_base_sets,
            "settings": self.settings.finetune_options,
            "device": self.settings.device,
        }
        return [*self._launcher(), "-m", "backend.learning.finetune_step", json.dumps(request)]

    def few_shot_command(self, work: FewShotRequest) -> list[str]:
        """`training.fewshot.learn` in one process."""
        request = {
            "base": str(work.base),
            "incumbent": str(work.incumbent),
            "snapshot": str(work.snapshot),
            "out": str(work.out),
            "classes": list(work.classes),
            "threads": self.settings.torch_threads,
        }
        return [sys.executable, "-m", "backend.learning.few_shot_step", json.dumps(request)]

    def calibrate_command(self, checkpoint: Path, snapshot: Path, folds: Path | None) -> list[str]:
        """Writes effort.json beside the weights; fails where there are too few corrections to say anything."""
        options = ["--snapshot", str(snapshot), "--count", str(CALIBRATION_IMAGES), "--device", self.settings.device]
        if folds is not None:
            options += ["--folds", str(folds)]
        command = [sys.executable, "-m", "backend.cli", "effort", "calibrate", "--weights", str(checkpoint)]
        return [*command, *options, "--shown-from", str(self.settings.score_threshold), "--json"]

    def gate_command(self, work: GateRequest) -> list[str]:
        """Writes `verdict.json` in the folder."""
        request = {
            "candidate": str(work.candidate),
            "incumbent": _text(work.incumbent),
            "best": _text(work.best),
            "snapshot": str(work.snapshot),
            "earlier": [str(path) for path in work.earlier],
            "rules": self.settings.gate_rules,
            "device": self.settings.device,
            "folds": _text(work.folds),
            "out": str(work.out / VERDICT_FILE),
        }
        return [sys.executable, "-m", "backend.learning.gate_step", json.dumps(request)]

    def _launcher(self) -> list[str]:
        processes = self.settings.train_processes
        if processes == 1:
            return [sys.executable]
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that another process replaces atomically; {} while there is none."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
