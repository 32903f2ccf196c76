"""The `dashboard` command."""

from __future__ import annotations

from typing import Any

import click

from backend.settings import load_settings

PORT = 9181


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=PORT, show_default=True, help="Port to listen on.")
@click.option("--redis-url", help="Queue server (TRANSFINER_REDIS_URL).")
def dashboard(host: str, port: int, **options: Any) -> None:
    """Show RQ's own view of the queue in a browser, read only; needs requirements/dashboard.in.

    On another address than this machine's own it asks for the service's password, and does not start without one.

    \b
    Example: transfiner dashboard --redis-url redis://queue:6379/0
    Example: transfiner serve --dashboard
    """
    from backend.connection import web_connection
    from backend.dashboard import check_dashboard, create_dashboard
    from backend.logs import set_up_logs

    settings = load_settings(**options)
    check_dashboard(settings, host)
    # Says so when there is no address of a queue server.
    web_connection(settings).close()
    set_up_logs(settings)
    from werkzeug.serving import make_server

    with make_server(host, port, create_dashboard(settings), threaded=True) as server:
        click.echo(f"The queue at http://{host}:{server.server_port}; Ctrl-C ends it.")
        server.serve_forever()
