"""The `rehearse` command: honest rounds, a poisoned one, a rollback; every figure is of the untouched test set.

The report says how well the order of tasks predicted the edits that they took, beside mean confidence.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from backend.devtools.rehearsal.plan import (
    Plan,
    finetuning,
    material_of,
    photograph_plan,
    tiny_plan,
    usual_processes,
    write_pool,
    write_test_set,
)
from backend.devtools.rehearsal.project import RehearsedProject, running_servers
from backend.errors import ServiceError, StartError
from backend.settings import SCENES_MODEL
from backend.versions.resolve import ServedModel, read_served_model
from model.checkpoints.metadata import WEIGHTS_FILE, read_metadata
from training.registry import Registry

Json = dict[str, Any]


@click.command()
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("output/rehearsal"),
    help="Folder of the report, the registry and everything else; must be empty or absent.",
)
@click.option("--rounds", type=click.IntRange(1), help="Rounds of honest corrections.  [default: 3]")
@click.option("--per-round", type=click.IntRange(1), help="Images corrected in each.  [default: 36]")
@click.option("--pool", type=click.IntRange(1), help="Images in the project.  [default: 160]")
@click.option("--test", type=click.IntRange(1), help="Untouched images for the figures.  [default: 40]")
@click.option(
    "--photos",
    nargs=2,
    metavar="TRAIN TEST",
    help="Two sets of photographs, as in `transfiner data check`, "
    "instead of drawn images; as many a round as there are.",
)
@click.option("--model", type=click.Path(path_type=Path), default=SCENES_MODEL, help="Checkpoint to start from.")
@click.option("--device", default="auto", help="auto, cpu, cuda.")
@click.option("--finetune", help="Fields of FinetuneSettings as a JSON object; 16 epochs by default.")
@click.option("--seed", type=click.IntRange(0), help="Of images and annotator.  [default: 0]")
@click.option("--tiny", is_flag=True, help="Minutes instead of an hour: shows that it runs, not that it learns.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole outcome as JSON.")
def rehearse(
    folder: Path,
    model: Path,
    device: str,
    finetune: str | None,
    tiny: bool,
    as_json: bool,
    photos: tuple[str, str] | None,
    **sizes: int | None,
) -> None:
    """Rehearse learning in a real Label Studio: rounds by a simulated annotator, poison, rollback.

    Needs Label Studio's environment (`make setup`). Exit status 1 when a claim of the report does not hold.

    \b
    Example: transfiner rehearse --tiny --out output/rehearsal-tiny
    """
    if folder.exists() and any(folder.iterdir()):
        raise StartError(f"{folder} is not empty.", "Choose another --out, or remove it.")
    plan_options: Json = {name: value for name, value in sizes.items() if value is not None}
    settings = _object(finetune)
    try:
        if tiny:
            plan = replace(tiny_plan(settings), photos=photos, **plan_options)
        elif photos:
            plan = photograph_plan(*photos, finetune=finetuning(256, settings), **plan_options)
        else:
            plan = Plan(finetune=finetuning(Plan.height, settings), **plan_options)
        material_of(plan)  # says what is wrong with the photographs before servers are started
    except (ValueError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from error
    # Settings of this machine's service must not change a rehearsal.
    for name in [name for name in os.environ if name.startswith(("TRANSFINER_", "LABEL_STUDIO_"))]:
        del os.environ[name]
    plan = replace(plan, processes=1 if tiny else usual_processes(device))
    outcome = Scenario(folder, plan, model, device).play()
    page = write_report(outcome, folder)
    claim_results = claims(outcome)
    click.echo(json.dumps({**outcome, "claims": claim_results}) if as_json else page.read_text(encoding="utf-8"))
    click.echo(f"The report is {page}.", err=True)
    if not all(claim_results.values()) and not tiny:
        sys.exit(1)


def _object(text: str | None) -> Json:
    try:
        fields = json.loads(text or "{}")
    except ValueError as error:
        raise click.UsageError(f"--finetune is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise click.UsageError(f"--finetune is {fields!r}, expected a JSON object such as {{}}")
    return fields


def _tell(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)


@dataclass
class Scenario:
    """One rehearsal in a folder.

    Attributes:
        model: checkpoint directory that everything starts from.
        outcome: facts so far; written as report.json.
    """

    folder: Path
    plan: Plan
    model: Path
    device: str
    outcome: Json = field(default_factory=dict)

    def play(self) -> Json:
        """Run the whole rehearsal. Raises ServiceError, ClientError when a step fails; `outcome` has those before."""
        begun = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        base = read_served_model(self.model)
        self.outcome.update(plan=asdict(self.plan), model=base.version, rounds=[], curve=[])
        material = material_of(self.plan)
        images = write_pool(material, self.plan.pool, self.folder / "pool")
        test_set = write_test_set(material, self.plan.test, self.folder / "test")
        options = {"MODEL": str(self.model.absolute()), "DEVICE": self.device}
        with running_servers(self.folder, self.plan, options) as servers:
            project = RehearsedProject(servers, material, _tell)
            project.set_up("rehearsal", images, base.version)
            self._learn(project, base, test_set)
            self._poison(project)
            self._roll_back(project)
        self.outcome["minutes"] = round((time.monotonic() - begun) / 60, 1)
        return self.outcome

    def _learn(self, project: RehearsedProject, base: ServedModel, test_set: Path) -> None:
        """Run the honest rounds; the version that a round promoted predicts the images of the next."""
        start = self._measured(project, base.version, test_set)
        curve = self.outcome["curve"] = [{"round": 0, "version": base.version, **start}]
        version = base.version
        for number in range(1, self.plan.rounds + 1):
            predicts = version != base.version or project.is_known_to(base)
            predicted_count = project.await_predictions(version) if predicts else 0
            work = project.annotate(self.plan.per_round)
            record = project.train()
            if record["state"] == "failed":
                raise ServiceError(f"Round {number} failed: {record['error']}", record["hint"])
            if record["state"] == "rejected" and self.plan.by_hand:
                project.stage.press(project.id, "promote", version=record["candidate"])
                record["state"] = "promoted by hand"
            if record["state"].startswith("promoted"):
                version = record["candidate"]
                project.await_title(version)
            figures = self._measured(project, version, test_set)
            curve.append({"round": number, "version": version, "state": record["state"], **figures})
            snapshot = self._registry().fetch_snapshot(str(project.id), record["snapshot"], self.folder / "cache")
            self.outcome["rounds"].append(
                {
                    "round": number,
                    "serves": version,
                    "gate": record["metrics"],
                    **{name: record[name] for name in ("state", "candidate", "parent", "reasons", "snapshot")},
                    "work": work,
                    "tasks_with_prediction": predicted_count,
                    "test": figures,
                    "effort": rank_correlations(snapshot),
                }
            )
            _tell(f"round {number}: {record['state']}, boundary AP {figures['boundary_ap']:.1f}")
        self._save()

    def _poison(self, project: RehearsedProject) -> None:
        """Train on shifted masks and swapped labels: the gate must refuse, and the same file must go on serving."""
        served_before = self._served(project)
        work = project.annotate(self.plan.per_round, poison=True)
        record = project.train()
        served_after = self._served(project)
        self.outcome["poison"] = {
            **{name: record[name] for name in ("state", "candidate", "reasons", "error")},
            "gate": record["metrics"],
            "work": work,
            "served_before": served_before,
            "served_after": served_after,
            "is_same_file": served_before == served_after,
        }
        self._save()

    def _roll_back(self, project: RehearsedProject) -> None:
        served_before = self._served(project)
        if not project.stage.learning(project.id)["can_roll_back"]:
            self.outcome["rollback"] = {
                "before": served_before,
                "after": served_before,
                "said": "no other version served before",
            }
            return
        project.stage.press(project.id, "rollback")
        served_after = self._served(project)
        project.await_title(served_after["version"])
        self.outcome["rollback"] = {"before": served_before, "after": served_after, "title": served_after["version"]}
        self._save()

    def _registry(self) -> Registry:
        return Registry(self.folder / "registry")

    def _checkpoint(self, project: RehearsedProject, version: str | None) -> Path:
        """Checkpoint directory of a version; for None and the first version, the model that everything started from."""
        if version in (None, self.outcome["model"]):
            return self.model
        return self._registry().fetch(str(project.id), version, self.folder / "cache")

    def _measured(self, project: RehearsedProject, version: str, test_set: Path) -> dict[str, float]:
        _tell(f"measuring {version} on {self.plan.test} untouched images")
        return measure(self._checkpoint(project, version), test_set)

    def _served(self, project: RehearsedProject) -> dict[str, str]:
        """The serving version, and the sha256 of its weights on the disk."""
        version = project.stage.learning(project.id)["active"]
        digest = hashlib.sha256((self._checkpoint(project, version) / WEIGHTS_FILE).read_bytes()).hexdigest()
        return {"version": version or self.outcome["model"], "sha256": digest}

    def _save(self) -> None:
        (self.folder / "report.json").write_text(json.dumps(self.outcome, indent=1, ensure_ascii=False))


def measure(checkpoint: Path, test_set: Path) -> dict[str, float]:
    """Measure mask_ap and boundary_ap, in points, of a checkpoint directory, by the gate's evaluator."""
    from training.gate.holdout import DetectionCache, detect_with, open_holdout
    from training.gate.holdout import measure as measure_on

    holdout = open_holdout(test_set)
    detections = DetectionCache(detect_with()).on(checkpoint, holdout.samples, holdout.keys)
    figures = measure_on(holdout, detections, read_metadata(checkpoint)["classes"], 0.02).figures()
    return {f"{kind}_ap": round(100 * figures[kind]["AP"], 2) for kind in ("mask", "boundary")}


def rank_correlations(snapshot: Path) -> Json:
    """Spearman's rho over the images of a snapshot whose prediction was shown; 1: the lowest score took the most.

    Returns:
        {"images", "task_score", "mean_confidence"}; None where nothing can be said (fewer than three images, no
        variation).
    """
    from training.snapshots.annotation_cost import rank_correlation

    images = json.loads((snapshot / "corrections.json").read_text(encoding="utf-8"))["images"]
    predicted_images = [image for image in images if image["shown"] and image["prediction_score"] is not None]
    costs = [image["cost"] for image in predicted_images]
    confidences = [
        [object_record["score"] for object_record in image["objects"] if object_record["score"] is not None]
        for image in predicted_images
    ]
    orders = {
        "task_score": [image["prediction_score"] for image in predicted_images],
        "mean_confidence": [sum(scores) / len(scores) if scores else 0.0 for scores in confidences],
    }
    correlations: Json = {"images": len(predicted_images)}
    for name, values in orders.items():
        rho = rank_correlation([-value for value in values], costs) if len(predicted_images) > 2 else math.nan
        correlations[name] = None if math.isnan(rho) else round(rho, 3)
    return correlations


def write_report(outcome: Json, folder: Path) -> Path:
    """Write report.md and report.json into the folder; the path of report.md."""
    (folder / "report.json").write_text(json.dumps(outcome, indent=1, ensure_ascii=False), encoding="utf-8")
    page = folder / "report.md"
    page.write_text(rehearsal_markdown(outcome), encoding="utf-8")
    return page


def rehearsal_markdown(outcome: Json) -> str:
    """Format the report."""
    plan, curve = outcome["plan"], outcome["curve"]
    rows = [
        (point["round"], point["version"], f"{point['boundary_ap']:.1f}", f"{point['mask_ap']:.1f}") for point in curve
    ]
    lines = [
        "# Learning from corrections, rehearsed",
        "",
        f"Start: {outcome['model']}, on a domain it never saw. {plan['rounds']} round(s) of {plan['per_round']} "
        f"corrected images in a real Label Studio; all figures on {plan['test']} images that nobody annotated. "
        f"{outcome.get('minutes', '?')} minutes.",
        "\n## On untouched images\n",
        tabulate(rows, ["round", "version", "boundary AP", "mask AP"], "github", disable_numparse=True),
        *_rounds(outcome["rounds"]),
        *(_poison(outcome["poison"]) if "poison" in outcome else ()),
        *(_rollback(outcome["rollback"]) if "rollback" in outcome else ()),
        "\n## Claims\n",
        *(f"- {'yes' if is_so else '**NO**'}: {claim}" for claim, is_so in claims(outcome).items()),
    ]
    return "\n".join(lines) + "\n"


def claims(outcome: Json) -> dict[str, bool]:
    """Claims of the rehearsal, and whether each holds."""
    boundary_aps = [point["boundary_ap"] for point in outcome["curve"]]
    poison, back = outcome.get("poison", {}), outcome.get("rollback", {})
    return {
        "boundary AP on untouched images rose in each round": len(boundary_aps) > 1
        and all(later > earlier for earlier, later in pairwise(boundary_aps)),
        "the gate refused the poisoned round": poison.get("state") == "rejected",
        "and the served model is the same file": bool(poison.get("is_same_file")),
        "the rollback served another file at once": bool(back) and back["before"]["sha256"] != back["after"]["sha256"],
    }


def _rounds(rounds: list[Json]) -> list[str]:
    work = ("kept", "moved", "relabelled", "added", "deleted", "seconds")
    rows = (
        [
            *(record[name] for name in ("round", "state")),
            *(f"{record['work'].get(name, 0):.0f}" for name in work),
            *(record["effort"][name] for name in ("task_score", "mean_confidence")),
        ]
        for record in rounds
    )
    reasons = [
        f"- round {record['round']}, {record['state']}: {reason}"
        for record in rounds
        if not record["state"].startswith("promoted")
        for reason in record.get("reasons") or ()
    ]
    return [
        "\n## Rounds\n",
        tabulate(
            rows, ["round", "state", *work, "order: task score", "mean confidence"], "github", disable_numparse=True
        ),
        "\nOrder: Spearman's rho between the shown score (lowest first) and the edits that were needed.",
        *(["\nWhat was not promoted, and why:\n", *reasons] if reasons else []),
    ]


def _poison(poison: Json) -> list[str]:
    version_before, version_after = (
        f"{served['version']} (sha256 {served['sha256'][:12]})"
        for served in (poison["served_before"], poison["served_after"])
    )
    return [
        "\n## The poisoned round\n",
        f"{poison['work'].get('poisoned', 0):.0f} images with shifted masks and swapped labels: **{poison['state']}**.",
        f"Served before {version_before}, after {version_after}.\n",
        *(f"- {reason}" for reason in (*poison["reasons"], poison["error"]) if reason),
    ]


def _rollback(back: Json) -> list[str]:
    title = f"; Label Studio calls the backend {back['title']}" if "title" in back else f" ({back['said']})"
    return ["\n## Rollback\n", f"From {back['before']['version']} to {back['after']['version']}{title}."]
