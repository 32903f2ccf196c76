"""What commands that measure share: their options, and printing a result for people or for programs."""

from __future__ import annotations

import json
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
threads_option = click.option(
    "--threads", type=click.IntRange(0), default=2, show_default=True, help="0: the machine's."
)
size_option = click.option(
    "--size", nargs=2, type=click.IntRange(32), default=(800, 1216), show_default=True, help="Height, width."
)


def print_result(outcome: Any, text: str, as_json: bool) -> None:
    """Print ``text``, or ``outcome`` as JSON."""
    click.echo(json.dumps(outcome) if as_json else text)


def limit_threads(threads: int) -> None:
    """Let torch use this many threads; 0 leaves them as they are."""
    if threads:
        import torch

        torch.set_num_threads(threads)
