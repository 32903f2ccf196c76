"""A folder of files that forgets the least recently used; shared by processes without locks.

A file is written beside its place and renamed, so readers see whole files or none. The access time is set by
hand (file systems do not keep it); the modification time stays the time of writing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

_SUFFIX = ".bin"
#: The folder is measured after this share of the limit was written.
_SWEEP_SHARE = 16


class FileCache:
    """Keeps bytes under text keys.

    Args:
        max_age_s: older files count as missing.
    """

    def __init__(self, directory: Path, *, max_bytes: int, max_age_s: float) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._unswept_bytes = max_bytes  # measure at the first write: others may have filled the folder
        directory.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> bytes | None:
        """The bytes of a key, None when they are missing or too old."""
        path = self._path(key)
        try:
            written_s = path.stat().st_mtime
            if time.time() - written_s > self._max_age_s:
                return None
            data = path.read_bytes()
            os.utime(path, (time.time(), written_s))
        except OSError:  # never there, or another process has just removed it
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes, unless they alone exceed the limit."""
        if len(data) > self._max_bytes:
            return
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".new-", delete=False) as file:
            file.write(data)
        Path(file.name).replace(self._path(key))
        self._unswept_bytes += len(data)
        if self._unswept_bytes * _SWEEP_SHARE >= self._max_bytes:
            self._unswept_bytes = 0
            self._sweep()

    def discard(self, key: str) -> None:
        """Forget a key."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._directory / (hashlib.sha256(key.encode()).hexdigest() + _SUFFIX)

    def _sweep(self) -> None:
        files = []
        for path in self._directory.glob(f"*{_SUFFIX}"):
            try:
                stat = path.stat()
            except OSError:
                continue  # removed by another process
            files.append((stat.st_atime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
