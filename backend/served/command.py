"""The served half of `transfiner evaluate`: both passes with their progress bars, then the figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from backend.served import gap
from backend.served.asking import Credentials, ServedError
from backend.served.evaluation import Asked, ask, scored
from backend.served.reading import LabelError
from model.checkpoint_metadata import read_metadata
from training.datasets import AnySet

Json = dict[str, Any]


def asked_of(options: dict[str, Any]) -> Asked:
    """From the command's options."""
    host, _, port = options.pop("image_server").rpartition(":")
    if not host or not port.isdigit():
        raise click.UsageError("--image-server needs HOST:PORT, e.g. 127.0.0.1:8123")
    credentials = Credentials(options.pop("user"), options.pop("password"), options.pop("token"))
    return Asked(**options, credentials=credentials, image_host=host, image_port=int(port))


def evaluate_served(
    asked: Asked, samples: AnySet, name: str, *, weights: Path | None, ratio: float, **how: Any
) -> Json:
    """The outcome as JSON; see `scored`.

    Args:
        weights: of the model whose raw masks are compared; None: only what is served is scored.
        how: of `evaluate_checkpoint`.
    """
    version = str(read_metadata(weights)["version"]) if weights else None
    try:
        with click.progressbar(length=len(samples), label=f"asking {asked.served}", file=sys.stderr) as bar:
            served = ask(asked, samples, version=version, progress=bar.update)
    except (ServedError, LabelError, OSError) as error:
        raise click.ClickException(str(error)) from error
    raw = _raw(samples, name, weights, ratio=ratio, **how) if weights else None
    outcome: Json = {"set": name, "weights": str(weights) if weights else None}
    outcome |= scored(asked, served, raw=raw, ratio=ratio)
    if outcome["failed"] and not served.objects.versions:
        reasons = "; ".join(one["reason"] for one in outcome["failed"])
        raise click.ClickException(f"every task failed: {reasons}")
    return outcome


def _raw(samples: AnySet, name: str, weights: Path, **how: Any) -> list[Json]:
    from training.evaluation.run import evaluate_checkpoint

    found = gap.RawDetections()
    with click.progressbar(length=len(samples), label=f"raw masks of {name}", file=sys.stderr) as bar:
        evaluate_checkpoint(weights, samples, observe=found, progress=lambda _: bar.update(1), **how)
    return found.results
