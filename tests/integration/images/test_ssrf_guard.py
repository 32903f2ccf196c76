"""Which peers may be talked to."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from requests import PreparedRequest, RequestException
from requests.adapters import HTTPAdapter

from integration.images.download import AddressPolicy, AddressRefused, origin


@pytest.mark.parametrize(
    "peer",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # metadata service of clouds
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "2002:0a00:0001::1",  # 6to4 of 10.0.0.1
        "224.0.0.1",  # multicast
        "ff0e::1",
        "::7f00:1",  # IPv4-compatible
        "::ffff:0:7f00:1",  # IPv4-translated
        "64:ff9b:1::7f00:1",  # NAT64 of a network of one's own
        "2001:0:7f00:1::",  # Teredo
        "5f00::1",
        "fec0::1",  # site-local
        "192.0.0.8",
        "192.88.99.1",  # 6to4 relay
    ],
)
def test_private_addresses_need_permission(peer: str) -> None:
    with pytest.raises(AddressRefused, match="not public"):
        AddressPolicy().check("name.example", 80, peer)
    AddressPolicy(["*"]).check("name.example", 80, peer)
    AddressPolicy(["name.example"]).check("NAME.example", 80, peer)


@pytest.mark.parametrize("peer", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_public_addresses_do_not(peer: str) -> None:
    AddressPolicy().check("name.example", 80, peer)


@pytest.mark.parametrize(
    ("allowed", "host", "port", "peer", "fine"),
    [
        ("minio", "minio", 9000, "10.0.0.5", True),
        ("minio:9000", "minio", 9000, "10.0.0.5", True),
        ("minio:9000", "minio", 22, "10.0.0.5", False),
        ("10.0.0.0/8", "anything", 80, "10.0.0.5", True),
        ("10.0.0.0/8", "anything", 80, "192.168.0.5", False),
        ("10.0.0.5", "10.0.0.5", 80, "10.0.0.5", True),
        ("10.0.0.5", "rebound.example", 80, "10.0.0.5", False),
        ("fd00::/8", "[fd00::1]", 80, "fd00::1", True),
        (" ", "x", 80, "10.0.0.5", False),
    ],
)
def test_permissions(allowed: str, host: str, port: int, peer: str, fine: bool) -> None:
    policy = AddressPolicy([allowed])
    if fine:
        policy.check(host, port, peer)
    else:
        with pytest.raises(AddressRefused):
            policy.check(host, port, peer)


def test_a_network_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99"):
        AddressPolicy(["10.0.0.0/99"])


@pytest.mark.parametrize(
    ("first", "other", "same"),
    [
        ("http://a/x", "http://A:80/y?z", True),
        ("https://a", "https://a:443", True),
        ("http://a", "https://a", False),
        ("http://a:8080", "http://a", False),
        ("http://a.b", "http://a", False),
    ],
)
def test_origins(first: str, other: str, same: bool) -> None:
    assert (origin(first) == origin(other)) is same


@pytest.mark.parametrize(
    "url",
    [
        "http://evil:81\\@ls/x.png",
        "http://evil:81\\x.png",
        "http://user@ls/x.png",
        "http://user:secret@ls/x.png",
        "http://@ls/x.png",
        "http://e\tvil/x.png",
        "http://ls/a\r\nX: y",
        "http://ls:eighty/x",
        "http://[::1/x",
    ],
)
def test_addresses_that_can_be_read_in_two_ways_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        origin(url)


PIECES = ["evil", "ls", ":81", ":", "\\", "@", "/", "//", "#", "?", "%40", "%5C", "[::1]", ".", "\t", "\n", " ", "ü"]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map("".join))
@example("evil:81\\@ls/x.png")
@example("ls:@evil/")
def test_an_origin_is_the_host_that_requests_connects_to(rest: str) -> None:
    url = "http://" + rest
    try:
        scheme, host, port = origin(url)
        request = PreparedRequest()
        request.prepare(method="GET", url=url)
        pool = HTTPAdapter().get_connection_with_tls_context(request, verify=True)
    except (ValueError, RequestException):
        return  # refused by one of them: nothing is sent
    assert (scheme, host, port) == (pool.scheme, pool.host.strip("[]").lower(), pool.port)
