"""Who may press a button on the status page: somebody with the password, on a page that came from here.

A browser sends basic auth along with any form of any site, so a form also carries a token that other sites cannot
read. Programs with a bearer token need none: no browser sends that by itself.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time

from flask import Request, request
from redis import Redis

from backend.api.origin import has_password
from backend.api.setup_trust import FORWARDED
from backend.errors import ServiceError
from backend.queue.connection import text
from backend.queue.keys import FORM_SECRET
from backend.settings import Settings

# A page that was left open this long must be loaded again.
HOURS = 12


def form_token(connection: Redis) -> str:
    """For a hidden field `token` of every form; the same on all replicas."""
    return _token(connection, int(time.time() // 3600))


def check_form(connection: Redis, settings: Settings) -> None:
    """Of the request at hand.

    Raises:
        ServiceError: it may not change anything.
    """
    if not has_password(settings) and not _is_local(request):
        raise ServiceError(
            "Without a password only a browser on the same machine may change what is served.",
            "Set TRANSFINER_BASIC_AUTH_USER and TRANSFINER_BASIC_AUTH_PASSWORD.",
            status=403,
        )
    if request.authorization is not None and request.authorization.type == "bearer":
        return
    now = int(time.time() // 3600)
    given = request.form.get("token", "").encode()
    good = [hmac.compare_digest(given, _token(connection, now - hour).encode()) for hour in range(HOURS)]
    if not any(good) or request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise ServiceError(
            "This form did not come from the status page, or was open for too long.",
            "Load /status again and press the button there.",
            status=403,
        )


def _token(connection: Redis, hour: int) -> str:
    connection.set(FORM_SECRET, secrets.token_hex(32), nx=True)
    secret = text(connection.get(FORM_SECRET)).encode()
    return hmac.new(secret, f"form {hour}".encode(), hashlib.sha256).hexdigest()


def _is_local(asked: Request) -> bool:
    """A proxy says for whom it asks."""
    address = asked.remote_addr or ""
    if any(name in asked.headers for name in FORWARDED):
        return False
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
