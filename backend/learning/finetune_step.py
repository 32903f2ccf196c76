"""The finetuning as a process: one JSON object (steps.Finetuning) on the command line; also under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> None:
    """Leaves OUT/checkpoint and keeps OUT/progress.json up to date; SIGTERM ends it with its state kept."""
    from training.finetune import FinetuneSettings, finetune

    finetune(
        Path(request["active"]), Path(request["snapshot"]), Path(request["out"]), classes=request["classes"],
        replay=[Path(one) for one in request["replay"]], base_sets=request["base_sets"],
        settings=FinetuneSettings(**{"device": request["device"], **request["settings"]}),
    )  # fmt: skip


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
