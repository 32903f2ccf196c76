"""Images fetched from real (loopback) servers: bounds, credentials, redirects, cache."""

from __future__ import annotations

import base64
import gzip
import io
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3.util.connection
from PIL import Image

from integration.images.download import AddressPolicy
from integration.images.fetch import FetchSettings, ImageError, ImageFetcher

pytestmark = pytest.mark.service

KEY = "0123456789abcdef0123456789abcdef01234567"
UPLOAD = "/data/upload/1/a.png"


def png(red: int = 9, size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def task(value: str) -> dict[str, Any]:
    return {"id": 5, "data": {"image": value}}


def fetcher(studio: Any, **fields: Any) -> ImageFetcher:
    return ImageFetcher(FetchSettings(**{"label_studio_url": studio.url, "api_key": KEY, **fields}))


def redirect(server: Any, path: str, target: str, status: int = 302) -> None:
    server.give(path, b"", status, {"Location": target})


@pytest.fixture
def other(make_loopback: Callable[[], Any]) -> Any:
    """A second host."""
    return make_loopback()


def test_uploads_come_with_the_key(loopback: Any) -> None:
    loopback.give(UPLOAD, png())
    rgb = fetcher(loopback).fetch(task(UPLOAD), "image")
    assert rgb.shape == (4, 6, 3)
    assert rgb[0, 0].tolist() == [9, 0, 0]
    assert loopback.requests[0].headers["Authorization"] == f"Token {KEY}"
    assert fetcher(loopback).fetch_bytes(task(UPLOAD), "image") == png()


def test_personal_access_tokens_are_exchanged(loopback: Any) -> None:
    loopback.give("/api/token/refresh/", {"access": "head.body.access"})
    loopback.give(UPLOAD, png())
    fetcher(loopback, api_key="a.b.c").fetch(task(UPLOAD), "image")
    assert loopback.requests[1].headers["Authorization"] == "Bearer head.body.access"


def test_an_access_token_that_ended_early_is_replaced(loopback: Any) -> None:
    loopback.give("/api/token/refresh/", {"access": "head.body.access"})

    def page(request: Any, handler: Any) -> None:
        give = loopback.pages["/good"] if len(loopback.requests) > 2 else loopback.pages["/bad"]
        give(request, handler)

    loopback.give("/good", png())
    loopback.give("/bad", {}, 401)
    loopback.pages[UPLOAD] = page
    assert fetcher(loopback, api_key="a.b.c").fetch(task(UPLOAD), "image").shape == (4, 6, 3)


def test_refused_personal_tokens_say_so(loopback: Any) -> None:
    loopback.give("/api/token/refresh/", {}, 401)
    with pytest.raises(ImageError, match=r"cannot log in.*create a new one"):
        fetcher(loopback, api_key="a.b.c").fetch(task(UPLOAD), "image")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_cloud_images_go_through_label_studio_and_leave_the_key_there(loopback: Any, other: Any, status: int) -> None:
    other.give("/bucket/a.png", png())
    redirect(loopback, "/tasks/5/resolve/", f"{other.url}/bucket/a.png?X-Signature=secret", status)
    image = fetcher(loopback, private_hosts=(other.host,)).fetch(task("s3://bucket/a.png"), "image")
    assert image.shape == (4, 6, 3)
    encoded = loopback.requests[0].query["fileuri"][0]
    assert base64.urlsafe_b64decode(encoded).decode() == "s3://bucket/a.png"
    assert "Authorization" in loopback.requests[0].headers
    assert "Authorization" not in other.requests[0].headers
    assert other.requests[0].query == {"X-Signature": ["secret"]}


def test_cloud_images_proxied_by_label_studio(loopback: Any) -> None:
    loopback.give("/tasks/5/resolve/", png())
    assert fetcher(loopback).fetch(task("gs://bucket/a.png"), "image").shape == (4, 6, 3)


def test_other_hosts_never_get_the_key(loopback: Any, other: Any) -> None:
    other.give("/a.png", png())
    fetcher(loopback, private_hosts=("127.0.0.1",)).fetch(task(f"{other.url}/a.png"), "image")
    assert "Authorization" not in other.requests[0].headers


def test_a_netrc_file_does_not_interfere(loopback: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    loopback.give(UPLOAD, png())
    fetcher(loopback).fetch(task(UPLOAD), "image")
    assert loopback.requests[0].headers["Authorization"] == f"Token {KEY}"


def test_environment_proxies_are_not_used(loopback: Any, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    loopback.give(UPLOAD, png())
    assert fetcher(loopback).fetch(task(UPLOAD), "image").shape == (4, 6, 3)


@pytest.mark.parametrize("how", ["direct", "redirect", "by name", "as IPv6"])
def test_private_addresses_are_refused_before_anything_is_sent(loopback: Any, other: Any, how: str) -> None:
    other.give("/a.png", png())
    target = f"{other.url}/a.png"
    if how == "redirect":
        redirect(loopback, UPLOAD, target)
        target = UPLOAD
    elif how == "by name":
        target = target.replace("127.0.0.1", "localhost")
    elif how == "as IPv6":
        target = target.replace("127.0.0.1", "[::ffff:127.0.0.1]")
    with pytest.raises(ImageError, match=r"may not be fetched.*list of private hosts"):
        fetcher(loopback).fetch(task(target), "image")
    assert other.requests == []


def test_label_studio_is_allowed_on_its_own_port_only(loopback: Any, other: Any) -> None:
    loopback.give("/a.png", png())
    other.give("/a.png", png())
    image_fetcher = fetcher(loopback)
    assert image_fetcher.fetch(task(f"{loopback.url}/a.png"), "image").shape == (4, 6, 3)
    with pytest.raises(ImageError, match="may not be fetched"):
        image_fetcher.fetch(task(f"{other.url}/a.png"), "image")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1"])
def test_redirects_to_other_schemes_are_refused(loopback: Any, target: str) -> None:
    redirect(loopback, UPLOAD, target)
    with pytest.raises(ImageError, match="expected http or https"):
        fetcher(loopback).fetch(task(UPLOAD), "image")


@pytest.mark.parametrize(("redirects", "fine"), [(2, True), (3, False)])
def test_redirects_are_counted(loopback: Any, redirects: int, fine: bool) -> None:
    for number in range(redirects):
        redirect(loopback, f"/data/{number}", f"/data/{number + 1}")
    loopback.give(f"/data/{redirects}", png())
    few = fetcher(loopback, max_redirects=2)
    if fine:
        assert few.fetch(task("/data/0"), "image").shape == (4, 6, 3)
    else:
        with pytest.raises(ImageError, match="more than 2 redirects"):
            few.fetch(task("/data/0"), "image")
    assert len(loopback.requests) == 3


@pytest.mark.parametrize("announced", [True, False])
def test_large_files_are_given_up(loopback: Any, announced: bool) -> None:
    def page(request: Any, handler: Any) -> None:
        handler.send_response(200)
        if announced:
            handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.close_connection = True
        for _ in range(1000):
            handler.wfile.write(bytes(1000))

    loopback.pages[UPLOAD] = page
    with pytest.raises(ImageError, match=r"too large.*at most 5000 bytes"):
        fetcher(loopback, max_bytes=5000).fetch(task(UPLOAD), "image")


def test_the_body_of_a_redirect_is_not_read(loopback: Any) -> None:
    """It could be gigabytes, more still when they are compressed."""

    def page(request: Any, handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /data/b.png\r\n\r\n")
        handler.close_connection = True
        while True:  # until the client closes the connection
            handler.wfile.write(bytes(1 << 16))

    loopback.pages[UPLOAD] = page
    loopback.give("/data/b.png", png())
    assert fetcher(loopback, timeout_s=5).fetch(task(UPLOAD), "image").shape == (4, 6, 3)


def test_compressed_answers_are_measured_after_decompression(loopback: Any) -> None:
    headers = {"Content-Encoding": "gzip"}
    loopback.give(UPLOAD, gzip.compress(bytes(5_000_000)), headers=headers)
    with pytest.raises(ImageError, match="too large"):
        fetcher(loopback, max_bytes=50_000).fetch(task(UPLOAD), "image")
    loopback.give(UPLOAD, gzip.compress(png()), headers=headers)
    assert fetcher(loopback).fetch(task(UPLOAD), "image").shape == (4, 6, 3)


@pytest.mark.parametrize("hangs_in", ["status", "header", "body"])
def test_servers_that_drip_for_ever_are_cut_off(loopback: Any, hangs_in: str) -> None:
    stop = threading.Event()

    def page(request: Any, handler: Any) -> None:
        if hangs_in == "header":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        elif hangs_in == "body":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not stop.wait(0.02):
            handler.wfile.write(b"" if hangs_in == "status" else b"x")
            handler.wfile.flush()
        handler.close_connection = True

    loopback.pages[UPLOAD] = page
    try:
        # Silence and slowness end at the same moment here; which of the two limits speaks first is chance.
        with pytest.raises(ImageError, match=r"takes too long: got more than 0\.4 s|timed out"):
            fetcher(loopback, timeout_s=0.4).fetch(task(UPLOAD), "image")
    finally:
        stop.set()


def test_answers_that_end_early_are_no_images(loopback: Any) -> None:
    def page(request: Any, handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nabc")
        handler.close_connection = True

    loopback.pages[UPLOAD] = page
    with pytest.raises(ImageError, match="cannot fetch"):
        fetcher(loopback).fetch(task(UPLOAD), "image")


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_transient_failure_is_tried_once_more(loopback: Any, status: int) -> None:
    def page(request: Any, handler: Any) -> None:
        loopback.pages["/bad" if len(loopback.requests) == 1 else "/good"](request, handler)

    loopback.give("/bad", b"", status)
    loopback.give("/good", png())
    loopback.pages[UPLOAD] = page
    assert fetcher(loopback).fetch(task(UPLOAD), "image").shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "check the API key"),
        (403, "LOCAL_FILES_SERVING_ENABLED"),
        (404, "still exists"),
        (500, "missing from its storage"),
        (418, "to see why"),
    ],
)
def test_refusals_of_label_studio_come_with_a_fix(loopback: Any, status: int, words: str) -> None:
    loopback.give(UPLOAD, {}, status)
    with pytest.raises(ImageError, match=f"status {status}.*{words}"):
        fetcher(loopback).fetch(task(UPLOAD), "image")


def test_nobody_there(free_port: int) -> None:
    settings = FetchSettings(label_studio_url=f"http://127.0.0.1:{free_port}")
    with pytest.raises(ImageError, match=r"Connection refused.*in a container"):
        ImageFetcher(settings).fetch(task(UPLOAD), "image")


def test_open_and_closed_ports_of_a_refused_address_cannot_be_told_apart(
    loopback: Any, other: Any, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = []
    monkeypatch.setattr(urllib3.util.connection, "create_connection", lambda *args, **_: connected.append(args))
    answers = []
    for port in (other.host.rpartition(":")[2], free_port):
        with pytest.raises(ImageError) as caught:
            fetcher(loopback).fetch(task(f"http://127.0.0.1:{port}/a.png"), "image")
        answers.append(str(caught.value).replace(str(port), "PORT"))
    assert answers[0] == answers[1]
    assert connected == []


def test_a_name_is_looked_up_once(loopback: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is checked and private when it is connected to gets nowhere."""
    other.give("/a.png", png())
    _, _, port = other.host.rpartition(":")
    answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("198.51.100.7", 1))]])
    genuine = socket.getaddrinfo
    looked_up = []

    def look_up(host: str, *args: Any, **options: Any) -> Any:
        looked_up.append(host)
        return next(answers) if host == "rebound.example" else genuine(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(AddressPolicy, "check", lambda *_: None)
    with pytest.raises(ImageError):
        fetcher(loopback, timeout_s=0.5).fetch(task(f"http://rebound.example:{port}/a.png"), "image")
    assert looked_up == ["rebound.example", "198.51.100.7"]
    assert other.requests == []


def test_a_host_of_several_addresses_is_tried_at_those_that_are_allowed(
    loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.give("/a.png", png())
    _, _, port = loopback.host.rpartition(":")
    genuine = socket.getaddrinfo

    def look_up(host: str, *args: Any, **options: Any) -> Any:
        if host != "several.example":
            return genuine(host, *args, **options)
        peers = ("10.0.0.1", "127.0.0.9", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (peer, int(port))) for peer in peers]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    several = fetcher(loopback, private_hosts=("127.0.0.0/8",))
    assert several.fetch(task(f"http://several.example:{port}/a.png"), "image").shape == (4, 6, 3)
    assert loopback.requests[0].headers["Host"] == f"several.example:{port}"


@pytest.mark.parametrize(
    "address",
    [
        "http://[bad/a.png?X-Signature=signed",
        "http://me:pass@[bad/a.png?X-Signature=signed#part",
        "http://host:port/a.png?X-Signature=signed",
        "http://host\\@other/a.png?X-Signature=signed",
        "http://me:pass@host/a.png?X-Signature=signed",
        "http://host\n/a.png?X-Signature=signed",
        "http://" + "a" * 300 + ".example/a.png?X-Signature=signed",
        "http://..example/a.png?X-Signature=signed",
        "http://host:99999/a.png?X-Signature=signed",
        "http://\uff0e\uff0e/a.png?X-Signature=signed",
        "ftp://me:pass@host/a.png?X-Signature=signed",
        "s3:?X-Signature=signed",
        "?X-Signature=signed",
        "//host/a.png?X-Signature=signed",
        "/a\u2028b.png?X-Signature=signed",
        ["http://me:pass@host/a.png?X-Signature=signed"],
        {"url": "http://me:pass@host/a.png?X-Signature=signed"},
    ],
)
def test_no_malformed_address_shows_its_signature(loopback: Any, free_port: int, address: Any) -> None:
    with pytest.raises(ImageError) as caught:
        ImageFetcher(FetchSettings()).fetch(task(address), "image")
    assert not [secret for secret in ("signed", "pass@") if secret in str(caught.value)], str(caught.value)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ImageError, match=r"cannot fetch http://no-such-host\.invalid/a\.png"):
        ImageFetcher(FetchSettings()).fetch(task("http://no-such-host.invalid/a.png"), "image")


def test_secrets_stay_out_of_messages(loopback: Any) -> None:
    address = f"{loopback.url}/a.png?X-Signature=signed#part"
    with pytest.raises(ImageError) as caught:
        fetcher(loopback).fetch(task(address), "image")
    assert "404" in str(caught.value)
    assert not [secret for secret in (KEY, "pass", "signed") if secret in str(caught.value)]
    assert KEY not in repr(FetchSettings(api_key=KEY))


def test_data_uris_need_no_server() -> None:
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    assert ImageFetcher(FetchSettings()).fetch(task(uri), "image").shape == (4, 6, 3)
    with pytest.raises(ImageError, match="too many pixels"):
        ImageFetcher(FetchSettings(max_pixels=10)).fetch(task(uri), "image")


def test_a_login_page_is_no_image(loopback: Any) -> None:
    loopback.give(UPLOAD, b"<!doctype html><html>Log in</html>")
    with pytest.raises(ImageError, match="a login page"):
        fetcher(loopback).fetch(task(UPLOAD), "image")


class TestCache:
    def test_files_are_fetched_once(self, loopback: Any, tmp_path: Path) -> None:
        loopback.give(UPLOAD, png())
        for _ in range(3):
            fetcher(loopback, cache_dir=tmp_path).fetch(task(UPLOAD), "image")
        assert len(loopback.requests) == 1

    def test_addresses_are_told_apart_to_the_last_letter(self, loopback: Any, tmp_path: Path) -> None:
        pages = {f"/data/upload/{'long' * 300}{end}": red for end, red in (("a", 1), ("b", 2))}
        for path, red in pages.items():
            loopback.give(path, png(red))
        cached = fetcher(loopback, cache_dir=tmp_path)
        for path, red in [*pages.items(), *pages.items()]:
            assert cached.fetch(task(path), "image")[0, 0, 0] == red

    def test_what_cannot_be_decoded_is_asked_for_again(self, loopback: Any, tmp_path: Path) -> None:
        cached = fetcher(loopback, cache_dir=tmp_path)
        loopback.give(UPLOAD, png()[:50])
        with pytest.raises(ImageError):
            cached.fetch(task(UPLOAD), "image")
        loopback.give(UPLOAD, png())
        assert cached.fetch(task(UPLOAD), "image").shape == (4, 6, 3)

    def test_failures_are_not_kept(self, loopback: Any, tmp_path: Path) -> None:
        with pytest.raises(ImageError):
            fetcher(loopback, cache_dir=tmp_path).fetch(task(UPLOAD), "image")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_written_costs_a_warning_only(
        self, loopback: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        loopback.give(UPLOAD, png())
        cached = fetcher(loopback, cache_dir=tmp_path / "cache")
        (tmp_path / "cache").rmdir()
        with caplog.at_level(logging.WARNING):
            assert cached.fetch(task(UPLOAD), "image").shape == (4, 6, 3)
        assert "cannot keep" in caplog.text


def test_threads_share_a_fetcher(loopback: Any, tmp_path: Path) -> None:
    for number in range(12):
        loopback.give(f"/data/{number}", png(number))
    shared = fetcher(loopback, cache_dir=tmp_path)
    reds: dict[int, np.ndarray] = {}

    def fetch(number: int) -> None:
        reds[number] = shared.fetch(task(f"/data/{number}"), "image")[0, 0, 0]

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reds == {number: number for number in range(12)}


@pytest.mark.parametrize(
    "spelling",
    [
        "http://{other}\\@{studio}/x.png",
        "http://{other}\\@{studio}/../x.png",
        "http://{studio}@{other}/x.png",
        "http://{studio}\t@{other}/x.png",
    ],
)
@pytest.mark.parametrize("how", ["direct", "redirect"])
def test_no_spelling_of_an_address_sends_the_key_elsewhere(loopback: Any, other: Any, spelling: str, how: str) -> None:
    """`http://OTHER\\@STUDIO/` was Label Studio's to one parser and OTHER's to the one that connected."""
    bare = {"other": other.url.removeprefix("http://"), "studio": loopback.url.removeprefix("http://")}
    target = spelling.format(**bare)
    if how == "redirect":
        redirect(loopback, UPLOAD, target.replace("\t", "%09"))
        target = UPLOAD
    with pytest.raises(ImageError):
        fetcher(loopback, private_hosts=("*",)).fetch(task(target), "image")
    assert not [request for request in other.requests if "Authorization" in request.headers]
