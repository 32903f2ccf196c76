"""Log lines for people or for collectors."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from backend.settings import Settings

TEXT_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
EXTRAS = ("request_id", "project", "task", "job", "version")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in EXTRAS if hasattr(record, name)},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logs(settings: Settings) -> None:
    """Our log lines to standard error, once a process; other libraries from WARNING on."""
    ours = logging.getLogger("backend")
    ours.setLevel(settings.log_level)
    logging.getLogger("integration").setLevel(settings.log_level)
    root = logging.getLogger()
    if any(getattr(handler, "is_transfiner", False) for handler in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else logging.Formatter(TEXT_FORMAT))
    handler.is_transfiner = True  # type: ignore[attr-defined]
    root.addHandler(handler)
