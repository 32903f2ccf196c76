"""Downloads against a server on the loopback that drops connections, changes files and answers oddly."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model.checkpoints import download as module
from model.checkpoints.download import DownloadError, download

pytestmark = pytest.mark.service

CONTENT = bytes(range(256)) * 4096


class Server:
    """Serves one file; the attributes say how, `ranges` records what was asked for."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.headers = {"ETag": '"v1"'}
        self.drop_after: list[int] = []  # for the coming answers: cut the connection after so many bytes
        self.status = 200
        self.ranges: list[str | None] = []
        self.wrong_start = False
        handler = type("Handler", (_Handler,), {"plan": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/output.pth"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    plan: Server

    def do_GET(self) -> None:
        plan, range_header = self.plan, self.headers.get("Range")
        plan.ranges.append(range_header)
        current = range_header and self.headers.get("If-Range") in plan.headers.values()
        start = int(range_header.removeprefix("bytes=").rstrip("-")) if range_header and current else 0
        total = len(plan.content)
        if start >= total > 0 and current:
            self.answer(416, b"", {"Content-Range": f"bytes */{total}"})
        elif plan.status != 200:
            self.answer(plan.status, b"no", plan.headers)
        elif current:
            stated_start = 0 if plan.wrong_start else start
            extra = {"Content-Range": f"bytes {stated_start}-{total - 1}/{total}"}
            self.answer(206, plan.content[start:], {**plan.headers, **extra})
        else:
            self.answer(200, plan.content, plan.headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may have read enough
            self.wfile.write(body[: self.plan.drop_after.pop(0)] if self.plan.drop_after else body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "store" / "output.pth"


def test_a_file_arrives_whole_with_progress(server: Server, target: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    assert download(server.url, target, lambda size, total: calls.append((size, total))) == target
    assert target.read_bytes() == CONTENT
    assert (calls[0], calls[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert [path.name for path in target.parent.iterdir()] == ["output.pth"]


def test_a_file_that_is_there_is_not_fetched_again(server: Server, target: Path) -> None:
    download(server.url, target)
    download(server.url, target)
    assert server.ranges == [None]


def test_dropped_connections_are_resumed_where_they_broke(server: Server, target: Path) -> None:
    server.drop_after = [300_000, 200_000]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_command_goes_on_where_the_first_gave_up(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.drop_after = [123_456]
    with pytest.raises(DownloadError, match=r"interrupted after 123456 bytes .* same command again"):
        download(server.url, target)
    assert not target.exists()
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges[1] == "bytes=123456-"


def test_no_endless_tries_without_progress(server: Server, target: Path) -> None:
    server.drop_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match="interrupted after 1000 bytes"):
        download(server.url, target)
    assert len(server.ranges) == 2


@pytest.mark.parametrize("headers", [{"ETag": '"v2"'}, {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}])
def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(
    server: Server, target: Path, headers: dict[str, str]
) -> None:
    server.drop_after = [300_000]
    server.drop_after.append(0)
    with pytest.raises(DownloadError):
        download(server.url, target)
    server.content, server.headers = CONTENT[::-1], headers
    download(server.url, target)
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_without_a_name_for_its_version_nothing_is_glued_together(
    server: Server, target: Path, headers: dict[str, str]
) -> None:
    server.headers = headers
    server.drop_after = [300_000]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_part_that_was_complete_already(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("output.pth.part").write_bytes(CONTENT)
    target.with_name("output.pth.part.version").write_text('"\\"v1\\""')
    download(server.url, target)
    assert target.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("output.pth.part").write_bytes(CONTENT + b"more")
    target.with_name("output.pth.part.version").write_text('"\\"v1\\""')
    with pytest.raises(DownloadError, match="shorter now"):
        download(server.url, target)
    download(server.url, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 404}, "answered 404 Not Found, expected the file; .*models import FILE"),
        ({"status": 503}, "answered 503"),
        ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, "a web page instead of the file"),
    ],
)
def test_answers_that_are_no_file(server: Server, target: Path, change: dict, message: str) -> None:
    vars(server).update(change)
    with pytest.raises(DownloadError, match=message):
        download(server.url, target)
    assert not target.exists()


def test_a_wrong_range_is_refused(server: Server, target: Path) -> None:
    server.drop_after, server.wrong_start = [1000], True
    with pytest.raises(DownloadError, match="asked for the bytes from 1000 on and answered with those from '0'"):
        download(server.url, target)


def test_offline_is_said_with_the_way_out(server: Server, target: Path) -> None:
    url = server.url
    server.http.server_close()
    with pytest.raises(DownloadError, match=r"cannot be reached .* `transfiner models import FILE`"):
        download(url, target)
