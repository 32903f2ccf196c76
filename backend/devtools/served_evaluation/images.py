"""How a running API gets the images of a set: inside the request, or from a small server of ours.

Both send PNG, which loses nothing: the model sees the very pixels that the raw evaluation sees.
"""

from __future__ import annotations

import base64
import secrets
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Protocol

import numpy as np

from backend.devtools.programs import as_png
from training.datasets import Sample


class Addresses(Protocol):
    """Gives each image of a set an address that goes into its task."""

    def of(self, index: int, image: np.ndarray) -> str:
        """The address of the set's image `index`, RGB uint8 H x W x 3."""
        ...


class InsideRequests:
    """Data URIs: any API can read them, wherever it runs, without a setting."""

    def of(self, index: int, image: np.ndarray) -> str:  # noqa: ARG002 - the image is its own address
        """A data URI."""
        return f"data:image/png;base64,{base64.b64encode(as_png(image)).decode()}"


class ImageServer:
    """Serves the images of a set over HTTP while it is entered; addresses hold a secret, so nobody guesses them.

    The API's workers refuse private addresses unless TRANSFINER_PRIVATE_IMAGE_HOSTS names `place`.

    Args:
        samples: the set. host: address to listen on, as the workers reach this machine. port: 0 lets the system choose.
    """

    def __init__(self, samples: Sequence[Sample], host: str = "127.0.0.1", port: int = 0) -> None:
        self._secret = secrets.token_urlsafe(12)
        self._server = ThreadingHTTPServer((host, port), _handler(samples, self._secret))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.place = f"{host}:{self._server.server_port}"

    def __enter__(self) -> ImageServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def of(self, index: int, image: np.ndarray) -> str:  # noqa: ARG002 - read when it is asked for
        """An http address."""
        return f"http://{self.place}/{self._secret}/{index}.png"


def _handler(samples: Sequence[Sample], secret: str) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            folder, _, name = self.path.strip("/").partition("/")
            number = name.removesuffix(".png")
            if folder != secret or not number.isdigit() or int(number) >= len(samples):
                self.send_error(404)
                return
            body = as_png(samples[int(number)].image)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: the command has a progress bar."""

    return Handler
