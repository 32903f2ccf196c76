"""The few endpoints of Label Studio that matter for what is stored: images, bulk import, list of predictions."""

from __future__ import annotations

import io
import itertools
import threading
from collections import Counter
from typing import Any

from flask import Flask, Response, jsonify, request
from PIL import Image
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

Json = dict[str, Any]


class _Silent(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Thousands of lines nobody wants."""


class StandIn:
    """A Label Studio of one project that can be taken down. Counts what is stored for each task, as it has no lock.

    Attributes:
        files: pictures under /data/files/<name>.
        forgets_to_answer: imports that are stored and then answered 504, as a proxy in front would.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.rows: list[Json] = []
        self._ids = itertools.count(1)
        self.files: dict[str, bytes] = {}
        self.forgets_to_answer = 0
        self._app = Flask("stand-in")
        self._app.add_url_rule("/data/upload/<int:width>/<name>", view_func=self._image)
        self._app.add_url_rule("/data/files/<name>", view_func=self._file)
        rule = "/api/projects/<int:project>/import/predictions"
        self._app.add_url_rule(rule, view_func=self._import, methods=["POST"])
        self._app.add_url_rule("/api/predictions", view_func=self._list)
        self._app.add_url_rule("/api/predictions/<int:prediction>/", view_func=self._delete, methods=["DELETE"])
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def up(self) -> None:
        self._server = make_server(self.host, self.port, self._app, threaded=True, request_handler=_Silent)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def down(self) -> None:
        if self._server and self._thread:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def store(self, rows: list[Json]) -> None:
        """What an answer of /predict brings."""
        self.rows += [{"id": next(self._ids), **row} for row in rows]

    def stored(self) -> Counter[int]:
        """Predictions of each task."""
        return Counter(int(row["task"]) for row in self.rows)

    def _image(self, width: int, name: str) -> Response:  # noqa: ARG002
        file = io.BytesIO()
        Image.new("RGB", (width, 24), "white").save(file, "PNG")
        return Response(file.getvalue(), mimetype="image/png")

    def _file(self, name: str) -> Response:
        return Response(self.files[name], mimetype="image/png")

    def _import(self, project: int) -> tuple[Response, int]:  # noqa: ARG002
        rows = request.get_json()
        self.store(rows)
        if self.forgets_to_answer:
            self.forgets_to_answer -= 1
            return jsonify(detail="late"), 504
        return jsonify(created=len(rows)), 201

    def _list(self) -> Response:
        task = request.args.get("task", type=int)
        return jsonify([row for row in self.rows if int(row["task"]) == task])

    def _delete(self, prediction: int) -> tuple[str, int]:
        self.rows = [row for row in self.rows if row["id"] != prediction]
        return "", 204
