"""The report says what was reached, and says NO where a claim does not hold."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from click.testing import CliRunner

from backend.devtools.rehearsal.command import claims, rehearsal_markdown, rehearse, write_report
from backend.devtools.rehearsal.plan import tiny_plan


def outcome(values=(10.0, 20.0, 30.0), state="rejected") -> dict:
    curve = [{"round": n, "version": f"v{n}", "boundary_ap": v, "mask_ap": v + 5} for n, v in enumerate(values)]
    served = {"version": "v2", "sha256": "a" * 64}
    return {
        "plan": asdict(tiny_plan({})),
        "model": "base",
        "minutes": 3,
        "curve": curve,
        "rounds": [
            {
                "round": 1,
                "state": "promoted",
                "work": {"kept": 3, "seconds": 61.5},
                "effort": {"images": 9, "task_score": 0.5, "mean_confidence": None},
            }
        ],
        "poison": {
            "state": state,
            "candidate": "v3",
            "reasons": ["mask AP fell"],
            "error": "",
            "work": {"poisoned": 5},
            "served_before": served,
            "served_after": served,
            "is_same_file": True,
        },
        "rollback": {"before": served, "after": {"version": "v1", "sha256": "b" * 64}, "title": "v1"},
    }


def test_a_good_rehearsal(tmp_path):
    assert all(claims(outcome()).values())
    page = " ".join(write_report(outcome(), tmp_path).read_text().split())
    for part in ("| 30.0 | 35.0 |", "| 1 | promoted | 3 |", "**rejected**", "mask AP fell", "From v2 to v1"):
        assert part in page
    assert "**NO**" not in page
    assert json.loads((tmp_path / "report.json").read_text())["model"] == "base"


@pytest.mark.parametrize(
    ("made", "claim"),
    [
        pytest.param(outcome((10.0, 9.0, 30.0)), "rose in each round", id="fell once"),
        pytest.param(outcome(state="promoted"), "refused the poisoned", id="poison was promoted"),
    ],
)
def test_what_does_not_hold_is_said(tmp_path, made, claim):
    assert any(claim in said and not holds for said, holds in claims(made).items())
    assert "**NO**" in write_report(made, tmp_path).read_text()


def test_what_was_not_promoted_has_its_reasons():
    facts = outcome()
    assert "not promoted, and why" not in rehearsal_markdown(facts)
    rejected_round = {**facts["rounds"][0], "round": 2, "state": "rejected", "reasons": ["not certainly better"]}
    page = rehearsal_markdown({**facts, "rounds": [*facts["rounds"], rejected_round]})
    assert "- round 2, rejected: not certainly better" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--pool", "3"], "are too few", id="sizes that cannot be"),
        pytest.param(["--finetune", "[1]"], "expected a JSON object", id="no object"),
        pytest.param(["--finetune", "{"], "is no JSON", id="no JSON"),
    ],
)
def test_wrong_usage(tmp_path, options, said):
    answer = CliRunner().invoke(rehearse, [*options, "--out", str(tmp_path / "new")])
    assert answer.exit_code == 2
    assert said in answer.output
