"""`python3 -m backend.bootstrap PART...`: makes the parts that are missing, and says what it does."""

from __future__ import annotations

import argparse
import sys

from .checks import SetupError, check_python

EXAMPLE = "example: python3 -m backend.bootstrap app label-studio"
PARTS = ("app", "dev", "label-studio", "browser")


def prepare_parts(parts: list[str], detectron2_source: str) -> None:
    """Make `parts`, each one only when its stamp is missing or out of date."""
    check_python()
    # Imported after the check: an interpreter that is too old fails on newer syntax without a clear message.
    from . import environments

    makers = {"app": environments.application, "dev": environments.development}
    for part in parts:
        if part == "browser":
            hint = environments.prepare_browser()
            if hint:
                print(f"note: {hint}", flush=True)
            continue
        environment = makers[part](detectron2_source) if part in makers else environments.label_studio()
        if part == "app" and environments.development(detectron2_source).is_ready():
            continue
        if not environment.is_ready():
            print(f"Setting up {environment.folder.name}, once (up to {environment.installed_gib} GiB)", flush=True)
        environments.prepare(environment)


def main() -> int:
    """Prepare the parts of the command line; exit status 0 when all are ready, 1 with a message otherwise."""
    parser = argparse.ArgumentParser(prog="python3 -m backend.bootstrap", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--detectron2", default="", metavar="SOURCE", help="build this instead of the wheel")
    arguments = parser.parse_args()
    try:
        prepare_parts(arguments.parts, arguments.detectron2)
    except SetupError as error:
        print(f"\nset-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up stopped by you; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
