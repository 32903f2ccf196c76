"""Access control: passwords, requests of other sites, buttons of the status page, and which Label Studio is trusted.

A browser sends requests of any site here, with the basic auth it knows. It says where they come from (Sec-Fetch-Site,
Origin), and cannot send JSON across sites without asking. A site that gives its own name our address (DNS rebinding)
shows in Host. Programs, Label Studio among them, send neither Origin nor Sec-Fetch-Site.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from flask import request
from redis import Redis
from werkzeug.datastructures import Headers

from backend.errors import ServiceError, UnauthorizedError
from backend.queue.connection import text
from backend.queue.keys import FORM_SECRET
from backend.settings import Settings
from integration.images.download import origin

# Open to everybody, for probes: they reveal nothing.
PUBLIC = frozenset({"label_studio.health", "label_studio.ready"})
# How Label Studio names itself. Its /health is checked: only a 401 there makes it say that the password is wrong.
LABEL_STUDIO_AGENT = "heartex/"
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
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via")
# A page that was left open this long must be loaded again.
HOURS = 12


def has_password(settings: Settings) -> bool:
    """Whether callers need a password, or the token for programs."""
    return bool(settings.basic_auth_user or settings.api_token.get_secret_value())


def authorise(settings: Settings) -> None:
    """Check basic auth or a bearer token where they are configured; Label Studio's events carry our secret instead."""
    if request.endpoint in PUBLIC and not request.user_agent.string.startswith(LABEL_STUDIO_AGENT):
        return
    webhook_secret = request.endpoint == "label_studio.webhook" and settings.webhook_secret.get_secret_value()
    if webhook_secret and _same(request.headers.get("X-Transfiner-Secret", ""), webhook_secret):
        return
    if not (webhook_secret or has_password(settings)):
        return
    if not _knows_credentials(settings):
        raise UnauthorizedError(
            "Credentials are missing or wrong.",
            "Give the ML backend in Label Studio the basic auth user and password."
            if settings.basic_auth_user
            else "This service takes TRANSFINER_API_TOKEN alone, which Label Studio cannot send; for Label Studio, set "
            "TRANSFINER_BASIC_AUTH_USER and TRANSFINER_BASIC_AUTH_PASSWORD as well.",
        )


def _knows_credentials(settings: Settings) -> bool:
    """Whether the current request carries the password or the token of the settings."""
    credentials = request.authorization
    token = settings.api_token.get_secret_value()
    if credentials and credentials.type == "bearer":
        return bool(token) and _same(credentials.token or "", token)
    if not settings.basic_auth_user or not credentials or credentials.type != "basic":
        return False
    # Both are always compared, in constant time, so that the time taken reveals nothing.
    user_is_right = _same(credentials.username or "", settings.basic_auth_user)
    return _same(credentials.password or "", settings.basic_auth_password.get_secret_value()) and user_is_right


def _same(sent_value: str, expected: str) -> bool:
    return hmac.compare_digest(sent_value.encode(), expected.encode())


def check_origin(settings: Settings) -> None:
    """Check where the current request comes from.

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
    sender = request.headers.get("Origin")
    own_origins = {f"{scheme}://{request.host}".lower() for scheme in ("http", "https")}
    is_foreign = request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
    if is_foreign or (sender is not None and sender.lower() not in own_origins):
        raise ServiceError(
            f"A page of another site ({(sender or 'unknown')[:80]!r}) sent this request.",
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
    names = {allowed_name.strip().lower() for allowed_name in allowed.split(",") if allowed_name.strip()}
    if not name:
        return False  # HTTP allows no empty name
    if "." not in name or name.endswith(PRIVATE_ENDINGS) or "*" in names or {name, host.lower()} & names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def form_token(connection: Redis) -> str:
    """Token for the hidden field `token` of every form; the same on all replicas."""
    return _token(connection, int(time.time() // 3600))


def check_form(connection: Redis, settings: Settings) -> None:
    """Check that the current form was sent by somebody with the password, from a page of this service.

    A browser sends basic auth along with any form of any site, so a form carries a token that other sites cannot read.
    Programs with a bearer token need none: no browser sends that by itself.
    """
    if not has_password(settings) and not _is_from_this_machine(request.remote_addr or "", request.headers):
        raise ServiceError(
            "Without a password only a browser on the same machine may change what is served.",
            "Set TRANSFINER_BASIC_AUTH_USER and TRANSFINER_BASIC_AUTH_PASSWORD.",
            status=403,
        )
    if request.authorization is not None and request.authorization.type == "bearer":
        return
    now = int(time.time() // 3600)
    token = request.form.get("token", "").encode()
    matches = [hmac.compare_digest(token, _token(connection, now - hour).encode()) for hour in range(HOURS)]
    if not any(matches) or request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise ServiceError(
            "This form did not come from the status page, or was open for too long.",
            "Load /status again and press the button there.",
            status=403,
        )


def _token(connection: Redis, hour: int) -> str:
    connection.set(FORM_SECRET, secrets.token_hex(32), nx=True)
    secret = text(connection.get(FORM_SECRET)).encode()
    return hmac.new(secret, f"form {hour}".encode(), hashlib.sha256).hexdigest()


def untrusted_reason(settings: Settings, hostname: str, *, peer: str, headers: Mapping[str, str] | Headers) -> str:
    """Why the address in a /setup is not used, with the fix; "" when it is used.

    Anybody who reaches the API can send a /setup; we fetch from and push to the address in it. So the address is used
    only when the operator named it, when the caller knew our password, or when both are on this machine.

    Args:
        headers: of the request; one that came through a proxy is not from this machine.
    """
    if not hostname or settings.label_studio_url:
        # The address of the settings is used; this one only tells which image addresses mean the same server.
        return ""
    try:
        scheme, host, port = origin(hostname)
    except ValueError:
        scheme, host, port = "", "", 0
    if scheme not in ("http", "https") or not host:
        return f"The address {hostname[:200]!r} of Label Studio is not http:// or https://; it is not used."
    if has_password(settings):
        # The caller knew our password (authorise).
        return ""
    trusted_hosts = {entry.strip().lower() for entry in settings.label_studio_hosts.split(",") if entry.strip()}
    if trusted_hosts & {"*", host, f"{host}:{port}"}:
        return ""
    if _is_this_machine(host) and _is_from_this_machine(peer, headers):
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


def _is_from_this_machine(peer: str, headers: Mapping[str, str] | Headers) -> bool:
    """Whether a caller is on this machine; a proxy names its client in a header."""
    return _is_this_machine(peer) and not any(name in headers for name in FORWARDED)
