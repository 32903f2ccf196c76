"""Addresses of tasks and redirects as an attacker spells them: Label Studio's key goes to Label Studio alone.

Every name leads to this machine here. EVIL and STUDIO are two servers on ports of their own; where a request arrived,
and for whom, says which host was connected to.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from integration.images.fetch import FetchSettings, ImageError, ImageFetcher

pytestmark = pytest.mark.service

KEY = "0123456789abcdef0123456789abcdef01234567"
START = "/data/upload/1/a.png"
# E is EVIL's host and port, S Label Studio's, P is EVIL's port.
SPELLINGS = [
    # a backslash is a slash to browsers and to urllib3, and a letter to urlsplit
    *("http://E\\@S/x", "http://E\\\\@S/x", "http://E\\.S/x", "http://S\\.E/x", "http:\\\\E\\x", "http:/\\E/x"),
    *("\\\\E\\x", "/\\E/x", "\\/E/x", "/\\/E/x", "/data\\@E/x", "http://E%5C@S/x", "http://E%5c%40S/x"),
    # what stands before an @
    *("http://S@E/x", "http://S:80@E/x", "http://a:b@E/x", "http://@E/x", "http://:@E/x", "http://S%40E/x", "/@E/x"),
    *("http://S%2f@E/x", "http://S%2F%40E/x", "http://S;@E/x", "http://E;@S/x", "http://E @S/x", "http://E:@S/x"),
    # where the host ends
    *("http://S#@E/x", "http://S?@E/x", "http://E#@S/x", "http://E?@S/x", "http://E/@S/x", "http://E/\\@S/x"),
    *("http://E#.S/x", "http://E?.S/x", "http://E%23@S/x", "http://E%3F.S/x", "http://E%2f.S/x"),
    # characters that one parser drops
    *("http://E\t@S/x", "http://E\n@S/x", "http://E\r\n@S/x", "http://E\0@S/x", "http://E%00.S/x", "http://E%00@S/x"),
    *("ht\ttp://E/x", "http\n://E/x", "\0http://E/x", " http://E/x", "\thttp://E\\@S/x", "http://\tE/x"),
    *("http://E%09@S/x", "http://E%0d%0a@S/x", "http://E\x0b@S/x", "http://E\x7f@S/x", "http://E\x85@S/x"),
    *("http://E\u2028@S/x", "http://E\u3000@S/x", "http://\ufeffE/x", "http://E\u200b@S/x"),
    # slashes more or fewer, and none
    *("//E/x", "///E/x", "////E/x", "http:E/x", "http:/E/x", "http:///E/x", "http:////E/x", "/..//E/x", "/.//E/x"),
    *("/%2f%2fE/x", "/%2fE/x", ".//E/x", "?//E/x", "#//E/x", "/data/..//E/x", "HTTP://E/x", "hTTp://E\\@S/x"),
    # other spellings of this machine
    *("http://127.1:P/x", "http://0x7f000001:P/x", "http://2130706433:P/x", "http://017700000001:P/x"),
    *("http://0177.0.0.1:P/x", "http://0:P/x", "http://127.0.0.1.:P/x", "http://localhost.:P/x"),
    *("http://[::ffff:127.0.0.1]:P/x", "http://[::ffff:7f00:1]:P/x", "http://[::127.0.0.1]:P/x", "http://[::]:P/x"),
    # IPv6 zones and brackets
    *("http://[::1%25lo]:P/x", "http://[::1%lo]:P/x", "http://[fe80::1%25lo]:P/x", "http://[::1%25@S]:P/x"),
    *(
        "http://[E]/x",
        "http://[::1]E/x",
        "http://[::1].E/x",
        "http://[S]@E/x",
        "http://[::1\\]@S/x",
        "http://[v1.x]:P/x",
    ),
    # letters that become others (IDNA, NFKC)
    *(
        "http://evil。example:P/x",
        "http://evil．example:P/x",
        "http://ⓔvil.example:P/x",
        "http://ev\u00adil.example:P/x",
    ),
    *("http://studio.example＠E/x", "http://studio.example／@E/x", "http://studio.example＃@E/x", "http://E＼@S/x"),
    *("http://studio。example\\@E/x", "http://ſtudio.example:P/x", "http://studio\u200d.example:P/x"),
    *("http://xn--studio.example:P/x", "http://%73tudio.example:P/x", "http://studio%2eexample:P/x"),
    # ports
    *("http://evil.example:0P/x", "http://evil.example:+P/x", "http://evil.example: P/x", "http://evil.example:P:80/x"),
    *(
        "http://evil.example:P%40S/x",
        "http://evil.example:１/x",
        "http://S:P/x",
        "http://S:P@E/x",
        "http://studio.example:P/x",
    ),
    # other schemes
    *(
        "https://E/x",
        "ftp://E/x",
        "file://E/x",
        "file:///etc/passwd",
        "gopher://E/x",
        "jar:http://E!/x",
        "url:http://E/x",
    ),
    *(
        "view-source:http://E/x",
        "data:http://E/x",
        "blob:http://E/x",
        "javascript:E",
        "s3://E/x",
        "gs://E\\@S/x",
        "://E/x",
    ),
    # a second request inside the first
    *("http://S/x HTTP/1.1\r\nHost: E", "http://S/x\r\nLocation: http://E/x", "http://S/%0d%0aLocation:%20http://E/x"),
    *("http://S/x?next=http://E/x", "http://S/x#http://E/x", "http://S.E/x", "http://S,E/x", "http://E,S/x"),
]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name is one of this machine; addresses are what the system makes of them."""
    genuine = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        try:
            return genuine(host, port, *args, **{**options, "flags": socket.AI_NUMERICHOST})
        except socket.gaierror:
            return genuine("127.0.0.1", port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def spelled(spelling: str, evil: Any, studio: Any) -> str:
    ports = [server.host.rpartition(":")[2] for server in (evil, studio)]
    text = spelling.replace("E", "\1").replace("S", "\2").replace("P", "\3")
    text = text.replace("HTT\3", "HTTP").replace("hTT\3", "hTTp")
    return (
        text.replace("\1", f"evil.example:{ports[0]}")
        .replace("\2", f"studio.example:{ports[1]}")
        .replace("\3", ports[0])
    )


def redirecting(target: str) -> Any:
    """A page whose header is what the attacker wrote, byte by byte."""

    def page(_: Any, handler: Any) -> None:
        header = b"HTTP/1.1 302 Found\r\nLocation: " + target.encode() + b"\r\nContent-Length: 0\r\n\r\n"
        handler.wfile.write(header)
        handler.close_connection = True

    return page


@pytest.mark.parametrize("private_hosts", [("*",), ()], ids=["any host", "public hosts"])
@pytest.mark.parametrize("way", ["in a task", "in a redirect", "in a template"])
@pytest.mark.usefixtures("names")
def test_no_spelling_brings_the_key_to_another_host(
    make_loopback: Any, way: str, private_hosts: tuple[str, ...]
) -> None:
    studio, evil = make_loopback(), make_loopback()
    own = f"studio.example:{studio.host.rpartition(':')[2]}"
    fetcher = ImageFetcher(
        FetchSettings(label_studio_url=f"http://{own}", api_key=KEY, private_hosts=private_hosts, timeout_s=5)
    )
    for spelling in SPELLINGS:
        address = spelled(spelling, evil, studio)
        studio.pages[START] = redirecting(address)
        data = {"image": address if way != "in a redirect" else START, "rest": address.partition(":")[2] or "x"}
        key = "http:$rest" if way == "in a template" else "image"
        with pytest.raises(ImageError):  # no server here has an image
            fetcher.fetch({"id": 5, "data": data}, key)
        leaks = [request for request in evil.requests if KEY in repr(request)]
        assert not leaks, f"{address!r} brought the key to the other host"
        strangers = [request for request in studio.requests if KEY in repr(request) and request.headers["Host"] != own]
        assert not strangers, f"{address!r} brought the key to {strangers[0].headers['Host']}"
        if not private_hosts:
            assert not evil.requests, f"{address!r} reached a host that is not public"
        studio.requests.clear()
        evil.requests.clear()
