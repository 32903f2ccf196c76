"""Shared by commands: checkpoints by name, devices, close spellings, options, printing a result as text or JSON.

Options are checked before anything heavy is imported.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.errors import ServiceError
from backend.processes.running_service import load_settings_of_running
from backend.versions.store import DEFAULT_STORE, find_model, stored_models
from model.checkpoints.metadata import METADATA_FILE, CheckpointError
from model.errors import MissingRequirementError, missing_gpu_reason
from model.files import json_values

if TYPE_CHECKING:
    from training.registry import Registry

DEVICE_NAME = re.compile(r"auto|cpu|cuda(:\d+)?")


def did_you_mean(value: str, names: Iterable[str]) -> str:
    """Suggest the name that is spelt most like a value; "" when none is close."""
    close = difflib.get_close_matches(value, list(names), 1)
    return f"Did you mean {close[0]}?" if close else ""


class CheckpointType(click.ParamType):
    """A checkpoint directory, given as a path or by the name of a shipped or imported model."""

    name = "checkpoint"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Find the checkpoint's directory; the error lists the known names."""
        try:
            return find_model(str(value), DEFAULT_STORE)
        except CheckpointError:
            names = [model.directory.name for model in stored_models(DEFAULT_STORE)]
            suggestion = did_you_mean(str(value), names) or f"Known names: {', '.join(names)}."
            self.fail(
                f"{str(value)!r} is no checkpoint; expected a folder with {METADATA_FILE} or a model's name. "
                f"{suggestion} `transfiner models list` shows them.",
                param,
                ctx,
            )


class DeviceType(click.ParamType):
    """auto, cpu, cuda or cuda:NUMBER; a GPU that the machine does not have is refused without importing torch."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the device; returns its name unchanged."""
        if not DEVICE_NAME.fullmatch(value):
            self.fail(f"{value!r}; expected auto, cpu, cuda or cuda:NUMBER, e.g. cuda:1.", param, ctx)
        if reason := missing_gpu_reason(value):
            self.fail(reason, param, ctx)
        return value


class SuggestingGroup(click.Group):
    """A group that names the closest command when one is misspelt."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; name the closest spelling in the error."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            suggestion = did_you_mean(args[0], self.list_commands(ctx))
            # Newer versions of click suggest names themselves.
            if suggestion and not getattr(error, "possibilities", None):
                raise click.UsageError(f"{error.message.rstrip('.')}. {suggestion}", ctx) from error
            raise


CHECKPOINT = CheckpointType()
DEVICE = DeviceType()
PORT = click.IntRange(0, 65535)
FOLDER, FILE = click.Path(file_okay=False, path_type=Path), click.Path(dir_okay=False, path_type=Path)
EXISTING_PATH = click.Path(exists=True, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def weights_option(text: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the option `--weights` (or `--model`), a checkpoint by directory or name."""
    return click.option("--weights", "--model", "weights", type=CHECKPOINT, help=text, **settings)


#: Exit code: the gate refused the candidate.
REFUSED = 3
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
device_option = click.option("--device", type=DEVICE, default="auto", help="auto, cpu, cuda, cuda:1 ...")
overrides_option = click.option(
    "--set", "overrides", nargs=2, multiple=True, metavar="KEY VALUE", help="Override a configuration key."
)
threads_option = click.option("--threads", type=click.IntRange(0), default=2, help="0: the machine's.")
size_option = click.option("--size", nargs=2, type=click.IntRange(32), default=(800, 1216), help="Height, width.")


def annotation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that read a project's annotations, from a Label Studio or from an exported file."""
    options = (
        click.option("--url", help="Address of Label Studio; LABEL_STUDIO_URL by default."),
        click.option("--api-key", help="Token of Label Studio; better in LABEL_STUDIO_API_KEY, where nobody sees it."),
        click.option("--export", "export_file", type=EXISTING_FILE, help="Exported file, instead of a Label Studio."),
        click.option("--label-config", "config_file", type=EXISTING_FILE, help="Label config of the export (XML)."),
        click.option(
            "--annotators",
            type=click.Choice(("latest", "agreement")),
            default="latest",
            help="Which of several annotations of an image counts.",
        ),
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


registry_option = click.option(
    "--registry", "registry_url", help="Folder or bucket of the versions; TRANSFINER_REGISTRY by default."
)
project_option = click.option("--project", help="Whose versions: Label Studio's project id, or any name.")


def open_registry(url: str | None) -> Registry:
    """Open the registry of a folder or URL, else that of the settings."""
    from training.registry import Registry

    return Registry(url or load_settings_of_running().registry or "var/registry")


def read_label_config_file(path: Path) -> str:
    """Read the text of a label config. Raises ServiceError when the file is no text."""
    content = path.read_bytes()
    is_utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as PowerShell writes files
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ServiceError(f"{path} is no text in UTF-8: {error}.", "Copy it from Label Studio.") from error


@contextmanager
def plain_errors(*command_errors: type[Exception]) -> Iterator[None]:
    """End the command with a message and exit code 1 on expected errors, and on those of ``command_errors``."""
    error_types: tuple[type[Exception], ...] = (ValueError, OSError, MissingRequirementError, *command_errors)
    try:
        yield
    except error_types as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar on the error stream where that is a terminal; yields `show(done_count, total)`."""
    with click.progressbar(length=1, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def show(done_count: int, total: int | None) -> None:
            bar.length = total or done_count + 1
            bar.update(done_count - bar.pos)

        yield show


def print_result(outcome: Any, text: str, as_json: bool) -> None:
    """Print ``text``, or ``outcome`` as JSON, which has no NaN."""
    click.echo(json.dumps(json_values(outcome)) if as_json else text)


def limit_threads(threads: int) -> None:
    """Let torch use this many threads; 0 leaves them as they are."""
    if threads:
        import torch

        torch.set_num_threads(threads)
