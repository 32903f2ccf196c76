"""Chromium, for the end-to-end test: found, installed where we may, or named with the command to type."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .checks import SetupError
from .environments import ROOT
from .running import run_visibly

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "CHROMIUM_PATH"
BY_HAND = f"`sudo apt-get install chromium`, or set {VARIABLE} to the path of a Chromium or Chrome"
INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
STEPS = (["apt-get", "update"], INSTALL)


def find_browser() -> str | None:
    """Path of the browser to test with: the variable's, else the first of the usual names, else None."""
    named = os.environ.get(VARIABLE)
    if named:
        return named if Path(named).is_file() else None
    return next(filter(None, map(shutil.which, NAMES)), None)


def prepare_browser() -> str | None:
    """Install Chromium when there is none and we may; returns a hint when somebody else has to."""
    if find_browser():
        return None
    if os.environ.get(VARIABLE):
        raise SetupError(f"{VARIABLE} names {os.environ[VARIABLE]!r}, which is not a file: {BY_HAND}")
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return f"no Chromium found, so the browser part of the end-to-end test will be skipped: {BY_HAND}"
    for step in STEPS:
        status, output = run_visibly(
            step,
            title=f"Chromium ({step[1]})",
            log=ROOT / "var" / "log" / "setup-browser.log",
            environment={"DEBIAN_FRONTEND": "noninteractive"},
        )
        if status:
            last = output.strip().splitlines()[-1] if output.strip() else "no message"
            raise SetupError(f"`{' '.join(step)}` failed ({last}): {BY_HAND}")
    return None
