"""What `transfiner evaluate --served URL` can be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--served", metavar="URL",
                 help="Score what a running API returns, and the gap to the raw masks of --weights."),
    click.option("--user", envvar="TRANSFINER_BASIC_AUTH_USER", default="", help="Served: user of its basic auth."),
    click.option("--password", envvar="TRANSFINER_BASIC_AUTH_PASSWORD", default="",
                 help="Served: its password; better as TRANSFINER_BASIC_AUTH_PASSWORD."),
    click.option("--token", envvar="TRANSFINER_API_TOKEN", default="",
                 help="Served: bearer token; better as TRANSFINER_API_TOKEN."),
    click.option("--regions", type=click.Choice(["polygon", "brush", "rectangle"]), default="polygon",
                 show_default=True, help="Served: what to ask for."),
    click.option("--tolerance-px", type=click.FloatRange(0), default=None,
                 help="Served: of the polygons, in pixels; default: the API's setting."),
    click.option("--threshold", type=click.FloatRange(0, 1), default=0.25, show_default=True,
                 help="Served: lowest score asked for; the API's TRANSFINER_SCORE_FLOOR is the lowest it gives."),
    click.option("--label-config", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                 help="Served: ask with this label configuration instead of one made for the set's classes."),
    click.option("--project", default="", metavar="ID", help="Served: be served the model of this project."),
    click.option("--images-by", type=click.Choice(["request", "server"]), default="request", show_default=True,
                 help="Served: images inside the requests, or fetched by the API from a server of this command "
                 "(its workers then need TRANSFINER_PRIVATE_IMAGE_HOSTS=HOST:PORT of --image-server)."),
    click.option("--image-server", metavar="HOST:PORT", default="127.0.0.1:0", show_default=True,
                 help="Served: where that server listens, as the workers reach this machine."),
    click.option("--chunk", type=click.IntRange(1), default=8, show_default=True, help="Served: images in a request."),
    click.option("--patience", "patience_s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True,
                 help="Served: give up when no image was done for so many seconds."),
)  # fmt: skip


def served_options(command: Command) -> Command:
    """Adds the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
