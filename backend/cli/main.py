"""The `transfiner` program: one group whose commands are imported only when they are used."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import logging
import sys
import warnings
from pathlib import Path

import click

from backend.cli.types import SuggestingGroup
from backend.errors import ServiceError

# Who needs a command -> command -> "module:object". Only the chosen one is imported.
SECTIONS: dict[str, dict[str, str]] = {
    "Annotate": {
        "demo": "backend.demo.command:demo",
        "serve": "backend.cli.operate.serve:serve",
        "doctor": "backend.doctor.command:doctor",
        "predict": "backend.cli.annotate.predict:predict",
        "learn": "backend.cli.annotate.learn:learn",
        "export": "backend.cli.annotate.export:export",
    },
    "Operate": {
        "models": "backend.cli.operate.models:models",
        "api": "backend.cli.operate.serve:api",
        "worker": "backend.cli.operate.serve:worker",
        "worker-alive": "backend.cli.operate.serve:worker_alive",
        "load": "backend.devtools.load:load",
        "soak": "backend.devtools.soak:soak",
    },
    "Train": {
        "snapshot": "backend.cli.train.snapshot:snapshot",
        "finetune": "backend.cli.train.train:finetune",
        "gate": "backend.cli.train.gate:gate",
        "effort": "backend.cli.train.effort:effort",
        "train": "backend.cli.train.train:train",
        "train-prompts": "backend.cli.train.train:train_prompts_command",
        "evaluate": "backend.cli.train.evaluate:evaluate",
        "data": "backend.cli.train.data:data",
        "rehearse": "backend.devtools.rehearsal.command:rehearse",
    },
    "Research": {"benchmark": "backend.cli.research.benchmark:benchmark", "score": "backend.cli.train.evaluate:score"},
}
COMMANDS: dict[str, str] = {name: target for section in SECTIONS.values() for name, target in section.items()}
HEAVY_PACKAGES = ("torch", "torchvision", "detectron2")


class LazyGroup(SuggestingGroup):
    """A group that lists commands without importing them: `--help` reads the first docstring line from the source."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return _load(cmd_name, COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, _summary(target)) for name, target in commands.items()])


# Packages whose notices are for their developers.
NOISY = r"(torch|torchvision|detectron2|fvcore|iopath|pkg_resources)(\.|$)"


def _summary(target: str) -> str:
    """First line of the docstring of the command's function, without importing it."""
    module, _, name = target.partition(":")
    spec = importlib.util.find_spec(module)
    tree = ast.parse(Path(str(spec.origin)).read_text(encoding="utf-8")) if spec else ast.Module([], [])
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return (ast.get_docstring(functions[0]) or "").partition("\n")[0] if functions else ""


def _load(name: str, target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        fix = "Run `make setup`."
        if package in HEAVY_PACKAGES:
            fix = "Run `make setup`, which installs torch, torchvision and detectron2 in matching versions."
        message = f"`transfiner {name}` needs the Python package {package}, which is not installed. {fix}"
        raise click.ClickException(message) from error
    assert isinstance(command, click.Command), f"{target} is {type(command).__name__}, not a click command"
    return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="transfiner-ml-backend", message="%(version)s")
def cli() -> None:
    """Outline objects for Label Studio with Mask Transfiner.

    \b
    Example: transfiner serve --port 9090
    """


def quiet_libraries() -> None:
    """Keep other people's deprecation notices from standing before a result; `python -W` brings them back."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=NOISY)
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def main() -> None:
    """Entry point: exit codes 0 fine, 1 failed with a reason, 2 wrong usage, 3 the gate refused."""
    quiet_libraries()
    try:
        cli()
    except ServiceError as error:
        click.echo(f"Error: {error.error}", err=True)
        if error.hint:
            click.echo(f"Fix:   {error.hint}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
