"""The GPU check's rehearsal on a CPU: every check runs to its end, and a failed one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from training.benchmark import gpu_check

pytestmark = pytest.mark.slow


def test_the_rehearsal_runs_every_check_and_writes_a_report(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu_check.main, ["--device", "cpu", "--tiny", "--out", str(tmp_path)])
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert result.exit_code == 0, report
    outcomes = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [outcome["name"] for outcome in outcomes] == list(gpu_check.CHECKS)
    assert not [outcome for outcome in outcomes if outcome["figure"].startswith("failed")]
    assert all(outcome["aim"] in report for outcome in outcomes)


def test_a_check_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: gpu_check.Scale) -> tuple[str, bool]:
        """never"""
        raise RuntimeError("no such kernel")

    def missed(_: gpu_check.Scale) -> tuple[str, bool]:
        """twice as fast"""
        return "1.5 times", False

    monkeypatch.setattr(gpu_check, "CHECKS", {"broken": broken, "missed": missed})
    result = CliRunner().invoke(gpu_check.main, ["--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "no such kernel" in result.output
    assert "**missed**" in result.output
