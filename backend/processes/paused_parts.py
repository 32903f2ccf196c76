"""Which parts of `serve` are paused: the supervisor tells the API, one of its children, through a file."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from pathlib import Path

from model.files import write_text

# In the environment of every child; no setting, since nobody else may choose it.
VARIABLE = "SERVICE_PAUSED_PARTS"


class PausedParts:
    """The supervisor's side."""

    def __init__(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="transfiner-parts-")
        weakref.finalize(self, folder.cleanup)
        self.file = Path(folder.name) / "paused.json"
        self._reasons: dict[str, str] = {}

    def environment(self) -> dict[str, str]:
        """What children need to read it."""
        return {VARIABLE: str(self.file)}

    def add(self, name: str, reason: str) -> None:
        """A part is paused; why, for people."""
        self._reasons[name] = reason
        write_text(self.file, json.dumps(self._reasons))

    def remove(self, name: str) -> None:
        """A part runs again."""
        if self._reasons.pop(name, None) is not None:
            write_text(self.file, json.dumps(self._reasons))


def paused_parts() -> list[str]:
    """A sentence for each part of this service that is paused; [] where no supervisor started this process."""
    try:
        reasons = json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return []
    return [f"Paused: {reason}. Its own messages are in the log of `transfiner serve`." for reason in reasons.values()]
