"""README and docs/ say what is there: files, links, settings, and each `transfiner` command with its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from backend.cli.main import cli
from backend.devtools.settings_page import setting_rows, settings_page
from backend.settings import Settings
from integration.label_studio.label_config import parse_label_config
from tests.support.service import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:]+)\)")
CODE = re.compile(r"```\w*\n(.*?)```|`([^`]+)`", re.DOTALL)
COMMAND = re.compile(r"(?:^|\s)(?:\.venv/bin/)?(transfiner [^#\n]*)")
# Whole alternatives of a subcommand, as in `transfiner models list|show`.
ALTERNATIVES = re.compile(r"^[\w-]+( ?\| ?[\w-]+)+$")


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """Each `transfiner` command of each page with its words; alternatives give a command each."""
    for page in PAGES:
        for block, inline in CODE.findall(page.read_text(encoding="utf-8")):
            for text in COMMAND.findall(re.sub(r"\s+", " ", inline) if inline else block):
                plain = re.sub(r"[\[\]]", "", re.sub(r" ?\| ?", "|", text))
                for words in _alternatives(shlex.split(plain)[1:]):
                    yield page.name, words


def _alternatives(words: list[str]) -> Iterator[list[str]]:
    for place, word in enumerate(words):
        if ALTERNATIVES.match(word):
            for choice in word.split("|"):
                yield [*words[:place], choice, *words[place + 1 :]]
            return
    yield words


COMMANDS = sorted({(page, " ".join(words)) for page, words in documented_commands() if words})


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("page", "text"), COMMANDS)
def test_a_documented_command_and_its_options_exist(
    page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder than the repository: a command must not depend on where it is called."""
    monkeypatch.chdir(tmp_path)
    command: click.Command = cli
    words = shlex.split(text)
    path: list[str] = []
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(click.Context(command), words[0])
        assert child is not None, f"{page}: `transfiner {text}`: {' '.join([*path, words[0]])} is no command"
        command = child
        path.append(words.pop(0))
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0]
            assert name in names | {"--help", "--version"}, f"{page}: `transfiner {text}` has no option {name}"
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_the_label_configs_of_the_readme_are_understood() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    kinds = []
    for xml in re.findall(r"```xml\n(.*?)```", text, re.DOTALL):
        config = parse_label_config(xml)
        config.require_supported()
        assert not config.warnings
        kinds.append([control.kind for control in config.controls])
    assert kinds == [["polygon"], ["brush"]]


def test_the_settings_page_is_current() -> None:
    assert [row.name for row in setting_rows()] == list(Settings.model_fields)
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run python -m backend.devtools.settings_page > docs/settings.md"


def test_the_walks_name_files_that_exist_and_count_them() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = page.split("\n## ")[1:4]
    for walk in walks:
        title = walk.splitlines()[0]
        files = 0
        for row in (line for line in walk.splitlines()[2:] if line.startswith("|")):
            _, first, second, _ = row.split("|", 3)
            rooms = re.findall(r"`([a-z_/]+)`", first) or ["model"]
            for name in re.findall(r"`([a-z_/]+\.py)`", second):
                assert any((ROOT / room / name).is_file() for room in rooms), f"{title}: {rooms} has no {name}"
                files += 1
        assert f": {files} files" in title, f"{title}: the table has {files} files"


def test_the_rooms_of_the_architecture_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = set(re.findall(r"`((?:backend|training|model|integration)/[a-z_]+)`", page))
    assert len(rooms) > 10
    assert not [room for room in rooms if not Path(ROOT / room).is_dir()]


def test_the_architecture_names_each_script_that_moves_a_job() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    scripts = {file.name for file in (ROOT / "backend" / "queue" / "scripts").glob("*.lua")}
    assert set(re.findall(r"`(\w+\.lua)`", page)) == scripts - {"look.lua", "recent.lua"}, "which only read"
