"""The gate as a process: one JSON object (steps.Judging) on the command line, `verdict.json` and a report as answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from model.files import write_text
from model.predictor import choose_device


def main(request: dict[str, Any]) -> int:
    """0 when the candidate may serve, 3 when it is refused."""
    from training.gate import judge
    from training.gate.detections import detect_with
    from training.gate.rules import parse_rules

    out = Path(request["out"])
    verdict = judge(
        Path(request["candidate"]),
        _path(request["incumbent"]),
        _path(request["best"]),
        Path(request["snapshot"]),
        earlier=[Path(path) for path in request["earlier"]],
        rules=parse_rules(request["rules"]),
        detect=detect_with(str(choose_device(request["device"]))),
        folds=_path(request.get("folds")),
        out=out.parent / "report",
    )
    write_text(out, json.dumps(verdict.as_dict()))
    return 0 if verdict.promote else 3


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
