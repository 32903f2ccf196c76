"""rq-dashboard behind our doors: it knows no passwords, no protection against forged requests, and deletes by a click.

So it is looked at, never acted upon: only its views and their data are served. What our tasks need done (retrying a
failed one) is done at /jobs, which knows their records. Without credentials of our own it is for this machine only.
"""

from __future__ import annotations

import importlib.util
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from flask import Flask, Response, abort, request

from backend.api.app import knows_credentials
from backend.api.origin import SECURITY_HEADERS, has_password
from backend.errors import StartError
from backend.settings import Settings

PACKAGES = ("rq_dashboard", "six")
PREFIX = "rq_dashboard."
# Everything else it offers changes the queue, one of them by a mere GET.
VIEWS = frozenset(
    PREFIX + name
    for name in (
        "static",
        "favicon",
        "queues_overview",
        "workers_overview",
        "jobs_overview",
        "job_view",
        "list_queues",
        "list_jobs",
        "job_info",
        "list_workers",
    )
)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def check_dashboard(settings: Settings, host: str) -> None:
    """Refuse early.

    Raises:
        StartError: the package is missing, or the address can be reached from elsewhere and there is no password.
    """
    if missing := [name for name in PACKAGES if not is_installed(name)]:
        raise StartError(
            f"The dashboard needs the Python package {missing[0].replace('_', '-')}, which is not installed.",
            "Run `pip install -r requirements/dashboard.in` in the service's environment.",
        )
    if host not in LOOPBACK and not has_password(settings):
        raise StartError(
            f"The dashboard shall listen on {host} and nobody would be asked for a password.",
            "Set TRANSFINER_BASIC_AUTH_USER and TRANSFINER_BASIC_AUTH_PASSWORD, or keep it on 127.0.0.1.",
        )


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def create_dashboard(settings: Settings) -> Flask:
    """The dashboard as an application of its own, so that the API neither imports it nor shows it."""
    import rq_dashboard
    from rq.serializers import JSONSerializer
    from rq_dashboard.web import config, setup_rq_connection

    # Its default would unpickle whatever lies in the queue.
    config.serializer = JSONSerializer
    app = Flask("transfiner-dashboard", static_folder=None)
    address, password = _without_password(settings.redis_url)
    app.config.update(
        RQ_DASHBOARD_REDIS_URL=(address,),
        RQ_DASHBOARD_REDIS_PASSWORD=password,
        RQ_DASHBOARD_DISABLE_DELETE=True,
        RQ_DASHBOARD_POLL_INTERVAL=2500,
    )
    app.before_request(lambda: _guard(settings))
    app.after_request(_end)
    app.register_blueprint(rq_dashboard.blueprint)
    setup_rq_connection(app)
    return app


def _guard(settings: Settings) -> Response | None:
    """Views only; with our password where there is one, else only for those who address this machine as itself."""
    if has_password(settings):
        if not knows_credentials(settings):
            return Response("Please log in.", 401, {"WWW-Authenticate": 'Basic realm="transfiner"'})
    elif (urlsplit(f"//{request.host}").hostname or "") not in LOOPBACK:
        # A page elsewhere whose name was made to point here would be let in by the browser.
        abort(403)
    if request.endpoint not in VIEWS or request.method not in ("GET", "HEAD"):
        abort(403)
    return None


def _end(response: Response) -> Response:
    """Its pages need scripts of their own; all else is as strict as ours."""
    response.headers.update({**SECURITY_HEADERS, "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'self'"})
    return response


def _without_password(url: str) -> tuple[str, Any]:
    """Its pages show the address."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=place)), parts.password
