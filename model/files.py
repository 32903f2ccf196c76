"""Write files that readers find whole: beside their place, then moved there in one step."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder to write to; it takes the place of ``path`` when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary_path
        temporary_path.replace(path)
    finally:
        temporary_path.unlink(missing_ok=True)


@contextmanager
def staged_folder(directory: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``directory``, to be renamed to it; removed at the end if it still exists."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    new_folder = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    new_folder.chmod(0o755)  # mkdtemp makes it private; workers may run as another user
    try:
        yield new_folder
    finally:
        shutil.rmtree(new_folder, ignore_errors=True)


@contextmanager
def replacing_folder(directory: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``directory``; it takes its place when the block ends without error."""
    with staged_folder(directory) as new_folder:
        yield new_folder
        if directory.exists():
            old_folder = new_folder.with_name(f"{new_folder.name}.old")
            directory.rename(old_folder)
            new_folder.rename(directory)
            shutil.rmtree(old_folder)
        else:
            new_folder.rename(directory)


def write_text(path: Path, text: str) -> None:
    """Write a text file, wholly or not at all."""
    with replacing(path) as temporary_path:
        temporary_path.write_text(text, encoding="utf-8")


def json_values(value: Any) -> Any:
    """Return a nested value with lists for tuples, and None for numbers that are not finite, which JSON has not."""
    if isinstance(value, dict):
        return {key: json_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
