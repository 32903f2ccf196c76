"""Whether the Label Studio that a /setup names is believed.

Anybody who reaches the API can send a /setup, and what it names is fetched from and pushed to: an unchecked one would
open the machine's private network and send a project's predictions elsewhere. So the address counts only when the
operator named it, when the caller knew our password, or when caller and address are both on this machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from werkzeug.datastructures import Headers

from backend.api.origin import has_password
from backend.settings import Settings
from integration.images.ssrf_guard import origin

FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via")


def untrusted_reason(settings: Settings, hostname: str, *, peer: str, headers: Mapping[str, str] | Headers) -> str:
    """Why an address of /setup is not used, with what to do about it; "" when it is.

    Args:
        hostname: as Label Studio sent it, e.g. "http://localhost:8080".
        peer: address of the caller.
        headers: of the request; one that came through a proxy is not from this machine.
    """
    if not hostname or settings.label_studio_url:
        # Ours is used instead; theirs only tells which image addresses mean the same server.
        return ""
    try:
        scheme, host, port = origin(hostname)
    except ValueError:
        scheme, host, port = "", "", 0
    if scheme not in ("http", "https") or not host:
        return f"The address {hostname[:200]!r} of Label Studio is not http:// or https://; it is not used."
    if has_password(settings):
        # The caller has shown our password.
        return ""
    named = {entry.strip().lower() for entry in settings.label_studio_hosts.split(",") if entry.strip()}
    if named & {"*", host, f"{host}:{port}"}:
        return ""
    is_proxied = any(name in headers for name in FORWARDED)
    if _is_this_machine(host) and _is_this_machine(peer) and not is_proxied:
        return ""
    return (
        f"The address {hostname[:200]!r} of Label Studio is not used, since anybody could have sent it: uploaded "
        "images cannot be read and late predictions cannot be pushed. Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY "
        f"(one Label Studio), or add {host!r} to TRANSFINER_LABEL_STUDIO_HOSTS, or set a password "
        "(TRANSFINER_BASIC_AUTH_USER)."
    )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
