"""The control that needs no Label Studio: the same snapshots, finetuned without weights and without replay."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.devtools.rehearsal.plan import Plan
from backend.errors import ServiceError
from backend.learning.round import CHECKPOINT
from backend.learning.steps import FINETUNE, PROGRESS_FILE, read_json, step_command
from backend.processes.parent_death import ends_with_parent
from backend.settings import Settings

LOG = "finetune.log"
TICK_S = 20.0
# Fields of FinetuneSettings that make every region and every pixel count the same.
PLAIN: dict[str, object] = {"use_weights": False, "replay_share": 0.0}


def plain_finetunings(
    model: Path,
    snapshots: Sequence[Path],
    classes: Sequence[str],
    folder: Path,
    plan: Plan,
    report: Callable[[str], None],
) -> list[Path]:
    """Checkpoint directories, one a snapshot, each finetuned from the one before; no gate, no replay, no weights.

    Raises:
        ServiceError: a finetuning failed; its log is in its folder.
    """
    settings = Settings(finetune_options={**plan.finetune, **PLAIN}, train_processes=plan.processes)
    made: list[Path] = []
    for number, snapshot in enumerate(snapshots, 1):
        out = (folder / f"plain-{number}").absolute()
        out.mkdir(parents=True)
        parent = made[-1] if made else model.absolute()
        request = {"active": parent, "snapshot": snapshot.absolute(), "out": out, "classes": classes, "replay": []}
        name = f"control, plain finetuning: round {number} of {len(snapshots)}"
        _run(step_command(settings, FINETUNE, request), out, name, report)
        made.append(out / CHECKPOINT)
    return made


def _run(command: Sequence[str], out: Path, name: str, report: Callable[[str], None]) -> None:
    """To its end, saying by its name how far it is.

    Raises:
        ServiceError: it failed.
    """
    report(name)
    with (out / LOG).open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=ends_with_parent())
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(TICK_S)
                break
            if now := read_json(out / PROGRESS_FILE):
                report(f"{name}, {now.get('phase')} {now.get('iteration')}/{now.get('of')}")
    if status:
        raise ServiceError(f"The plain finetuning failed with {status}.", f"See {out / LOG}.")
