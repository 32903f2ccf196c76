"""The gate as a process: one JSON object (steps.Judging) on the command line, `verdict.json` and a report as answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


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
        earlier=[Path(one) for one in request["earlier"]],
        rules=parse_rules(request["rules"]),
        detect=detect_with(_device(request["device"])),
        out=out.parent / "report",
    )
    unfinished = out.with_suffix(".part")
    unfinished.write_text(json.dumps(verdict.as_dict()), encoding="utf-8")
    unfinished.replace(out)
    return 0 if verdict.promote else 3


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
