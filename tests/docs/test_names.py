"""Variables are nouns: the words that CONTRIBUTING.md bans stand nowhere as names."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.service import ROOT

BANNED = {"one", "found", "told"}
#: Participles that say what happened to a value, and not what it is; the product has none of them as names.
PARTICIPLES = {
    *("asked", "chosen", "each", "given", "held", "kept", "known", "looked", "made", "meant", "measured", "moved"),
    *("named", "needed", "outlined", "placed", "removed", "said", "seen", "stored", "taken", "took", "tried", "used"),
    *("wanted", "written"),
}
PRODUCT = ("backend", "training", "model", "integration")


def names_of(file: Path) -> set[str]:
    """Variables and parameters of a file."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.arg for node in nodes if isinstance(node, ast.arg)
    }


def files_of(*folders: str) -> list[Path]:
    return [file for folder in folders for file in (ROOT / folder).rglob("*.py")]


def test_no_banned_word_is_a_variable() -> None:
    files = files_of(*PRODUCT, "tests")
    assert len(files) > 400
    assert not {str(file): words for file in files if (words := names_of(file) & BANNED)}


def test_no_bare_participle_is_a_variable_of_the_product() -> None:
    assert not {str(file): words for file in files_of(*PRODUCT) if (words := names_of(file) & PARTICIPLES)}
