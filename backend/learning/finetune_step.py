"""The finetuning as a process: one JSON object (steps.Finetuning) on the command line; also under torchrun."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> int:
    """Leaves OUT/checkpoint and keeps OUT/progress.json up to date; SIGTERM ends it with its state kept, status 1."""
    from training.finetune.finetune import FinetuneSettings, FinetuneStopped, finetune

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        finetune(
            Path(request["active"]),
            Path(request["snapshot"]),
            Path(request["out"]),
            classes=request["classes"],
            replay=[Path(path) for path in request["replay"]],
            base_sets=request["base_sets"],
            settings=FinetuneSettings(**{"device": request["device"], **request["settings"]}),
        )
    except FinetuneStopped as stop:
        print(stop, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
