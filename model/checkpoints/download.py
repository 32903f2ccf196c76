"""Downloads of large files that survive interruption: received data is kept, and the next try requests the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

CHUNK_BYTES = 1 << 20
# Seconds without any data before a connection counts as lost.
SILENCE_S = 60.0
ATTEMPTS = 5

# The errors of the two libraries for a connection that ends before its time.
INTERRUPTIONS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.TimeoutError,
)

DownloadProgress = Callable[[int, int | None], None]


class DownloadError(OSError):
    """A download that did not complete; the message says why and what to do. What arrived is kept."""


@dataclass(frozen=True)
class _Answer:
    """The part of a server's answer that counts: where its body starts, the file's length and its version."""

    start: int
    total: int | None
    version: str


def download(url: str, target: Path, progress: DownloadProgress = lambda _size, _total: None) -> Path:
    """Fetch `url` into `target`, going on where an earlier try stopped.

    Until it is complete the data is in `target` with `.part` added, so that `target` never is half a file.

    Args:
        url: http or https.
        target: the file to write; returned at once if it exists.
        progress: called with the bytes there are and the bytes expected, None if the server does not say.

    Raises:
        DownloadError: no connection, an error status, a web page instead of a file, or too many interruptions.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        old_size = _size(part)
        try:
            _fetch_rest(url, part, progress)
            break
        except INTERRUPTIONS as error:
            # Progress since the last try makes another one worth it.
            if attempt == ATTEMPTS - 1 or _size(part) <= old_size:
                raise DownloadError(_interruption(url, part, error)) from error
    part.rename(target)
    _version_file(part).unlink(missing_ok=True)
    return target


def _fetch_rest(url: str, part: Path, progress: DownloadProgress) -> None:
    size, version = _size(part), _read_version(part)
    # Without the server's name for the version, the rest might belong to another file: start again.
    headers = {"Accept-Encoding": "identity"}
    if size and version:
        headers |= {"Range": f"bytes={size}-", "If-Range": version}
    with requests.get(url, headers=headers, stream=True, timeout=SILENCE_S) as response:
        if response.status_code == 416 and _total_of(response) == size:
            return  # nothing was left to fetch
        if response.status_code == 416:
            part.unlink()
            raise DownloadError(f"{url} is shorter now than what was fetched before; run the command again")
        answer = _read_answer(response, url, size)
        _version_file(part).write_text(json.dumps(answer.version), encoding="utf-8")
        byte_count = answer.start
        with part.open("ab" if answer.start else "wb") as stream:
            progress(byte_count, answer.total)
            # read1 gives what has arrived; read would lose the beginning of a chunk that breaks off.
            while chunk := response.raw.read1(CHUNK_BYTES):
                stream.write(chunk)
                byte_count += len(chunk)
                progress(byte_count, answer.total)
    if answer.total is not None and byte_count != answer.total:
        raise requests.ConnectionError(f"the connection ended after {byte_count} of {answer.total} bytes")


def _read_answer(response: requests.Response, url: str, size: int) -> _Answer:
    if response.status_code not in (200, 206):
        raise DownloadError(
            f"{url} answered {response.status_code} {response.reason}, expected the file; "
            "check the address, or download it with a browser and run `transfiner models import FILE`"
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadError(
            f"{url} answered with a web page instead of the file (a download quota, or a question to confirm); "
            "download it with a browser and run `transfiner models import FILE`"
        )
    # ETags that start with W/ name no exact bytes; servers refuse them in If-Range.
    tag = response.headers.get("ETag", "")
    version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        return _Answer(0, int(length) if length.isdigit() else None, version)
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if start != str(size):
        raise DownloadError(f"{url} was asked for the bytes from {size} on and answered with those from {start!r}")
    return _Answer(size, _total_of(response), version)


def _total_of(response: requests.Response) -> int | None:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _interruption(url: str, part: Path, error: Exception) -> str:
    size = _size(part)
    if size:
        return f"{url} was interrupted after {size} bytes ({error}); run the same command again to go on from there"
    return (
        f"{url} cannot be reached ({error}); check the connection, or download the file elsewhere and run "
        "`transfiner models import FILE`"
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _read_version(part: Path) -> str:
    file = _version_file(part)
    try:
        return str(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return ""
