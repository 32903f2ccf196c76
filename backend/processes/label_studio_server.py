"""A real Label Studio on this machine, as the demo and the end-to-end test run it: one process, its own environment.

The switches are those of version 1.23.2. Without the two about addresses it refuses a backend on loopback and drops
every event for it; the others keep it from asking any host but its own.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from backend.errors import StartError
from backend.processes.waiting import answers

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / ".venv-label-studio" / "bin" / "label-studio"
COLD_START_S = 900.0  # its first start runs all migrations: 36 s on two idle cores, minutes on busy ones
SWITCHES = {
    "ML_BLOCK_LOCAL_IP": "false",
    "SSRF_PROTECTION_ENABLED": "false",
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LATEST_VERSION_CHECK": "false",
    "FEATURE_FLAGS_OFFLINE": "true",
}


@dataclass(frozen=True)
class Login:
    """The user of a data folder: made once, because Label Studio reads it only on its first start."""

    email: str
    password: str
    token: str  # legacy API token, 40 hex digits

    @classmethod
    def of_folder(cls, folder: Path) -> Login:
        """Read the login in `folder`; the first call makes it, readable by its owner only."""
        path = folder / "login.json"
        if path.exists():
            return cls(**json.loads(path.read_text()))
        login = cls("demo@example.com", secrets.token_hex(4), secrets.token_hex(20))
        folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(login), file)
        return login


@dataclass(frozen=True)
class LabelStudioServer:
    """Command and environment of one Label Studio.

    Attributes:
        port: TCP port on loopback. Label Studio silently takes the next one when it is in use: check before.
    """

    folder: Path
    port: int
    program: Path = PROGRAM

    def check_installed(self) -> None:
        """Raise StartError when its environment is missing."""
        if not self.program.exists():
            raise StartError(
                f"Label Studio is not installed: there is no {self.program}.",
                "Run `make demo`, or `python3 -m backend.bootstrap label-studio`.",
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def login(self) -> Login:
        return Login.of_folder(self.folder)

    @property
    def command(self) -> list[str]:
        listen = ["--internal-host", "127.0.0.1", "--port", str(self.port)]
        return [str(self.program), "start", "--no-browser", *listen, "--log-level", "INFO", "--enable-legacy-api-token"]

    @property
    def environment(self) -> dict[str, str]:
        return {
            **SWITCHES,
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder.resolve()),
            "LABEL_STUDIO_HOST": self.url,
            "LABEL_STUDIO_USERNAME": self.login.email,
            "LABEL_STUDIO_PASSWORD": self.login.password,
            "LABEL_STUDIO_USER_TOKEN": self.login.token,
        }

    def is_up(self) -> bool:
        """Whether it answers its health check."""
        return answers(f"{self.url}/health")
