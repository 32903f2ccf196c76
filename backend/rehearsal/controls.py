"""The control that needs no Label Studio: the same snapshots, finetuned without weights and without replay."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.errors import ServiceError
from backend.learning.rounds import CHECKPOINT
from backend.learning.steps import Finetuning, Steps
from backend.lifeline import ends_with_us
from backend.rehearsal.plan import Plan
from backend.settings import Settings

# Fields of FinetuneSettings that make every region and every pixel count the same.
PLAIN: dict[str, object] = {"use_weights": False, "replay_share": 0.0}


def plain_finetunings(
    model: Path, snapshots: Sequence[Path], classes: Sequence[str], folder: Path, plan: Plan,
    report: Callable[[str], None],
) -> list[Path]:  # fmt: skip
    """Checkpoint directories, one a snapshot, each finetuned from the one before; no gate, no replay, no weights.

    Raises:
        ServiceError: a finetuning failed; its log is in its folder.
    """
    settings = Settings(finetune_options={**plan.finetune, **PLAIN})
    made: list[Path] = []
    for number, snapshot in enumerate(snapshots, 1):
        report(f"control, plain finetuning: round {number} of {len(snapshots)}")
        out = (folder / f"plain-{number}").absolute()
        out.mkdir(parents=True)
        parent = made[-1] if made else model.absolute()
        work = Finetuning(parent, snapshot.absolute(), out, f"plain-{number}", tuple(classes))
        with (out / "finetune.log").open("wb") as log:
            ended = subprocess.run(
                Steps(settings).finetune_command(work),
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                preexec_fn=ends_with_us(),
            )
        if ended.returncode:
            raise ServiceError(
                f"The plain finetuning failed with {ended.returncode}.", f"See {out / 'finetune.log'}."
            )
        made.append(out / CHECKPOINT)
    return made
