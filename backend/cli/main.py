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
        "load": "backend.devtools.load.command:load",
        "soak": "backend.devtools.soak.command:soak",
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
        return [name for name, target in COMMANDS.items() if _source(target.partition(":")[0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        target = COMMANDS.get(cmd_name)
        if target is None or not _source(target.partition(":")[0]):
            return None
        return _load(cmd_name, target)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = set(self.list_commands(ctx))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, _summary(target)) for name, target in commands.items() if name in known])


# Packages whose notices are for their developers.
NOISY = r"(torch|torchvision|detectron2|fvcore|iopath|pkg_resources)(\.|$)"


def _source(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec and spec.origin else None


def _summary(target: str) -> str:
    """First line of the docstring of the command's function (else of its module), without importing it."""
    module, _, name = target.partition(":")
    path = _source(module)
    tree = ast.parse(path.read_text(encoding="utf-8")) if path else ast.Module([], [])
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    text = ast.get_docstring(functions[0]) if functions else ast.get_docstring(tree)
    return (text or "").partition("\n")[0]


def _load(name: str, target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise click.ClickException(_missing(name, error.name or str(error))) from error
    assert isinstance(command, click.Command), f"{target} is {type(command).__name__}, not a click command"
    return command


def _missing(command: str, module: str) -> str:
    package = module.partition(".")[0]
    if package in HEAVY_PACKAGES:
        return (
            f"`transfiner {command}` needs {package}, which is not installed. "
            "Run `make setup`, which installs torch, torchvision and detectron2 in matching versions."
        )
    return f"`transfiner {command}` needs the Python package {module}. Run `make setup`."


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
