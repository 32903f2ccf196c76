"""The few-shot learning as a process: one JSON object (steps.FewShotRequest) on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> int:
    """Leaves OUT/checkpoint and OUT/folds.json, and keeps OUT/progress.json up to date."""
    import torch

    from training.fewshot.learn import learn_few_shot

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    learn_few_shot(
        Path(request["base"]),
        Path(request["snapshot"]),
        Path(request["out"]),
        classes=request["classes"],
        incumbent=Path(request["incumbent"]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
