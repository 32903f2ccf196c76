"""The command line of the benchmark: what it lists, plans, counts, and refuses."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from backend.cli.research.benchmark import benchmark


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(benchmark, arguments)
    return result.exit_code, result.output


def test_help_lists_every_table_and_measure() -> None:
    code, text = run("--help")
    assert code == 0
    for name in (*(str(number) for number in range(1, 13)), "networks", "precision", "fewshot"):
        assert f"\n  {name} " in text


def test_a_dry_run_plans_without_data(tmp_path: Path) -> None:
    code, text = run("1", "--data", str(tmp_path), "--dry-run", "--json")
    assert code == 0, text
    plan = json.loads(text)
    assert plan["table"] == 1
    assert plan["rows"][0]["iterations"] > 0
    assert len(plan["data"]["missing"]) == 4


def test_missing_data_is_named_with_the_ways_out(tmp_path: Path) -> None:
    code, text = run("5", "--data", str(tmp_path), "--device", "cpu")
    assert code == 1
    assert "instances_train2017.json" in text
    assert "--miniature" in text
