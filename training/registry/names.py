"""Names that become parts of paths and URLs: projects, versions, snapshots, and the papers beside a version."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
CARD_FILE = "MODEL_CARD.md"
REPORT_FILE = "report.json"
PICTURES = "pictures"


class RegistryError(ValueError):
    """The registry cannot do what was asked; the message says what, where and the fix."""


def checked_name(kind: str, name: str) -> str:
    """The same name, if it can be a folder's name anywhere.

    Raises:
        RegistryError: it is empty, too long, or could leave its folder.
    """
    if not _SAFE.fullmatch(name):
        raise RegistryError(
            f"the {kind} is called {name!r}; expected 1 to 100 letters, digits, '.', '_' or '-', "
            "a letter or digit first"
        )
    return name


def is_paper(path: str) -> bool:
    """Whether a file of a version is about it (card, report, pictures) and so may come later and change."""
    parts = PurePosixPath(path).parts
    if not parts or any(not _SAFE.fullmatch(part) for part in parts):
        return False
    if len(parts) == 1:
        return parts[0] == CARD_FILE or PurePosixPath(parts[0]).stem == PurePosixPath(REPORT_FILE).stem
    return parts[0] == PICTURES
