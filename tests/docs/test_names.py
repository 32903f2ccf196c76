"""Variables are nouns: the words that CONTRIBUTING.md bans stand nowhere as names."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.service import ROOT

BANNED = {"one", "found", "told"}


def names_of(file: Path) -> set[str]:
    """Variables and parameters of a file."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.arg for node in nodes if isinstance(node, ast.arg)
    }


def test_no_banned_word_is_a_variable() -> None:
    files = [
        file
        for folder in ("backend", "training", "model", "integration", "tests")
        for file in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 400
    assert not {str(file): words for file in files if (words := names_of(file) & BANNED)}
