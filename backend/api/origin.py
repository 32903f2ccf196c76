"""Keeps pages of other sites, open in the browser of somebody who reaches the service, from using it.

A browser sends requests of any site here, with the basic auth it knows. It says where they come from (Sec-Fetch-Site,
Origin), and cannot send JSON across sites without asking. A site that gives its own name our address (DNS rebinding)
shows in Host. Programs, Label Studio among them, send neither Origin nor Sec-Fetch-Site.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from flask import request

from backend.errors import ServiceError
from backend.settings import Settings


def has_password(settings: Settings) -> bool:
    """Whether anything is asked of callers: a password, or the token for programs."""
    return bool(settings.basic_auth_user or settings.api_token.get_secret_value())


READS = frozenset({"GET", "HEAD", "OPTIONS"})
# Blueprint endpoints that take JSON and nothing else.
TAKES_JSON = frozenset({"label_studio.setup", "label_studio.predict", "label_studio.webhook"})
# Endings of names that are never those of a public server (RFC 6761, 6762, 8375; Kubernetes, Docker).
PRIVATE_ENDINGS = (".localhost", ".local", ".internal", ".home.arpa", ".svc", ".svc.cluster.local")
SECURITY_HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


def check_origin(settings: Settings) -> None:
    """Check where the request at hand comes from.

    Raises:
        ServiceError: another site sent it (403), or a body that must be JSON is not (415).
    """
    if not has_password(settings) and not _is_own_name(request.host, settings.allowed_hosts):
        raise ServiceError(
            f"This service has no password and was reached as {request.host[:80]!r}, which is not one of its names.",
            "Set a password (TRANSFINER_BASIC_AUTH_USER, _PASSWORD), or name the host in TRANSFINER_ALLOWED_HOSTS.",
            status=403,
        )
    if request.method in READS:
        return
    origin = request.headers.get("Origin")
    own = {f"{scheme}://{request.host}".lower() for scheme in ("http", "https")}
    is_foreign = request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
    if is_foreign or (origin is not None and origin.lower() not in own):
        raise ServiceError(
            f"A page of another site ({(origin or 'unknown')[:80]!r}) sent this request.",
            "Use the pages of this service, or a program.",
            status=403,
        )
    if request.endpoint in TAKES_JSON and not request.is_json:
        raise ServiceError(
            f"The content type is {request.mimetype[:80]!r}; expected application/json.",
            "Send the header Content-Type: application/json.",
            status=415,
        )


def _is_own_name(host: str, allowed: str) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    names = {entry.strip().lower() for entry in allowed.split(",") if entry.strip()}
    if "." not in name or name.endswith(PRIVATE_ENDINGS) or "*" in names or {name, host.lower()} & names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
