"""Downloads of large files that survive interruption: what has arrived is kept, and the next try asks for the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import requests

CHUNK_BYTES = 1 << 16
# Seconds without any data before a connection counts as lost.
SILENCE_S = 60.0
ATTEMPTS = 5
_BY_HAND = "download it with a browser and run `transfiner models import FILE`"

DownloadProgress = Callable[[int, int | None], None]


class DownloadError(OSError):
    """A download that did not complete; the message says why and what to do. What arrived is kept."""


def download(url: str, target: Path, progress: DownloadProgress = lambda _done, _total: None) -> Path:
    """Fetch `url` into `target`, going on where an earlier try stopped.

    Until it is complete the data is in `target` with `.part` added, so that `target` never is half a file.

    Args:
        progress: called with the bytes there are and the bytes expected, None if the server does not say.

    Raises:
        DownloadError: no connection, an error status, a web page instead of a file, or too many interruptions.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            _fetch_rest(url, part, progress)
            break
        except requests.RequestException as error:
            # Progress since the last try makes another one worth it.
            if attempt == ATTEMPTS - 1 or _size(part) <= before:
                raise DownloadError(_interrupted(url, part, error)) from error
    part.rename(target)
    return target


def _fetch_rest(url: str, part: Path, progress: DownloadProgress) -> None:
    done = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=SILENCE_S) as response:
        # "bytes 300-999/1000", or "bytes */1000" where nothing is left.
        place = response.headers.get("Content-Range", "")
        if response.status_code == 416 and place.endswith(f"/{done}"):
            return
        if response.status_code == 416:
            part.unlink()
            raise DownloadError(f"{url} is shorter now than what was fetched before; run the command again")
        _check(response, url)
        if response.status_code == 200:
            done = 0  # the server gives whole files only
        elif not place.startswith(f"bytes {done}-"):
            raise DownloadError(f"{url} was asked for the bytes from {done} on and answered with {place!r}")
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        progress(done, total)
        with part.open("ab" if done else "wb") as stream:
            for chunk in response.iter_content(CHUNK_BYTES):
                stream.write(chunk)
                done += len(chunk)
                progress(done, total)


def _check(response: requests.Response, url: str) -> None:
    """Raise DownloadError where an answer is no file."""
    if response.status_code not in (200, 206):
        status = f"{response.status_code} {response.reason}"
        raise DownloadError(f"{url} answered {status}, expected the file; check the address, or {_BY_HAND}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        why = "a web page instead of the file (a download quota, or a question to confirm)"
        raise DownloadError(f"{url} answered with {why}; {_BY_HAND}")


def _interrupted(url: str, part: Path, error: Exception) -> str:
    if have := _size(part):
        return f"{url} was interrupted after {have} bytes ({error}); run the same command again to go on from there"
    return f"{url} cannot be reached ({error}); check the connection, or {_BY_HAND}"


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
