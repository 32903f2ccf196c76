"""What can stop the set-up, said as one sentence with the fix."""

from __future__ import annotations

import re

NETWORK = (
    r"NewConnectionError|ConnectTimeoutError|NameResolutionError|ReadTimeoutError|ProxyError|SSLError"
    r"|Max retries|from versions: none|[Ee]rror sending request|dns error|tcp connect error|Connection refused"
)
COMPILER = (
    r"command '\S*(gcc|g\+\+|cc|c\+\+|cl(\.exe)?)' failed|[Uu]nable to find a compiler"
    r"|Python\.h: No such file|Visual C\+\+"
)
TAIL_LINES = 6


class SetupError(Exception):
    """Something the reader of the message has to mend; the message says how."""


# The first row that matches what pip or uv printed explains the failure. An unreachable registry comes before "no
# matching distribution", because pip reports the first as the second.
INSTALL_FAILURES = (
    (
        r"No space left on device|[Ee]rrno 28|os error 28",
        "the disk is full: free some space (`df -h .`) and run the same command again",
    ),
    (
        NETWORK,
        "the package registry could not be reached: check the connection, set HTTPS_PROXY behind a proxy, "
        "or name your mirror with `pip config set global.index-url URL`, then run the same command again",
    ),
    (
        COMPILER,
        "a package had to be compiled and no working compiler was found: "
        "`sudo apt-get install build-essential python3-dev`, then run the same command again",
    ),
    (
        r"No matching distribution found|Could not find a version|No solution found when resolving",
        "the registry lacks one of the locked versions for this Python: use Python 3.11 to 3.13 "
        "(`make setup PYTHON=python3.12`), or a mirror that carries every file",
    ),
    (r"Permission denied|Errno 13|os error 13", "a folder is not writable for you: run as the owner of this checkout"),
)


def explain_failure(output: str) -> str:
    """The cause and the fix for what pip or uv printed; the last lines of it when the cause is unknown."""
    for pattern, explanation in INSTALL_FAILURES:
        if re.search(pattern, output):
            return explanation
    tail = "\n    ".join(output.strip().splitlines()[-TAIL_LINES:])
    return f"the installation failed; its last lines were:\n    {tail}"
