"""The few endpoints of Label Studio that the service calls, over real HTTP, with what they store in plain sight.

For the mechanics of pushing only; tests/e2e has the real one.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

from flask import Flask, jsonify, request
from werkzeug.serving import make_server
from werkzeug.wrappers.response import Response

TOKEN = "0123456789abcdef0123456789abcdef01234567"


class FakeLabelStudio:
    """Attributes:
    predictions: rows stored, in order.
    pushes: size of each bulk import.
    failures: HTTP statuses with which the next imports fail; 0: store everything, then answer 504.
    unknown_tasks: ids that make an import fail with 400, as tasks of another project do.
    """

    def __init__(self) -> None:
        self.predictions: list[dict[str, Any]] = []
        self.pushes: list[int] = []
        self.failures: list[int] = []
        self.unknown_tasks: set[int] = set()
        self.ids = itertools.count(1)
        app = Flask("fake-label-studio")
        app.add_url_rule("/api/projects/<int:project>/import/predictions", view_func=self._import, methods=["POST"])
        app.add_url_rule("/api/predictions", view_func=self._list)
        app.add_url_rule("/api/predictions/<int:prediction>/", view_func=self._delete, methods=["DELETE"])
        self.server = make_server("127.0.0.1", 0, app, threaded=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def _import(self, project: int) -> Response | tuple[Response, int]:
        if request.headers.get("Authorization") != f"Token {TOKEN}":
            return jsonify(detail="Invalid token."), 401
        failure = self.failures.pop(0) if self.failures else None
        if failure:
            return jsonify(detail="broken"), failure
        rows = request.get_json()
        if self.unknown_tasks & {row["task"] for row in rows}:
            return jsonify(detail="task of another project"), 400
        self.pushes.append(len(rows))
        self.predictions += [{"id": next(self.ids), "project": project, **row} for row in rows]
        return (jsonify(detail="late"), 504) if failure == 0 else jsonify(created=len(rows))

    def _list(self) -> Response:
        return jsonify([row for row in self.predictions if row["task"] == request.args.get("task", type=int)])

    def _delete(self, prediction: int) -> tuple[str, int]:
        self.predictions = [row for row in self.predictions if row["id"] != prediction]
        return "", 204

    def end(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
