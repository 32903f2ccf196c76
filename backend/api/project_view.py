"""What the status page shows of a project: words, charts and pictures made of the facts that /learning gives."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from backend.api.charts import Series, line_chart
from backend.learning import run_record as runs
from backend.predictions.projects import Project
from backend.queue.train_queue import QUEUED
from backend.settings import Settings
from integration.label_studio.notice import PREFIX

Facts = dict[str, Any]
LEARNS = ("few-shot", "finetune")
# Stages of a round as people see them; each begins with the first of its own names.
STEPS = {
    "collect": ("looking", "snapshot"),
    "learn": (*LEARNS, "calibrate"),
    "judge": ("publish", "gate"),
    "serve": ("promote", "label studio"),
}
DOING = {
    "looking": "looks for new annotations",
    "snapshot": "collects annotations and images",
    "few-shot": "learns",
    "finetune": "learns",
    "calibrate": "measures the order of work",
    "publish": "stores the version",
    "gate": "judges it on images that it did not learn from",
    "promote": "lets it serve",
    "label studio": "tells Label Studio",
}
STAGES = tuple(DOING)
TONES = {runs.PROMOTED: "good", runs.UNCHANGED: "quiet"}
JUDGED = (runs.PROMOTED, runs.REJECTED)


def project_view(
    settings: Settings, project: Project | None, facts: Facts, *, waiting: int, trainers: Sequence[str], busy: str
) -> Facts:
    """For the template.

    Args:
        project: as /setup made it known; None where only the registry knows it.
        facts: of `learning_facts`; {} where learning is off.
        waiting: its tasks that wait for a prediction.
        trainers: workers that take trainings; busy: name of the project that one of them trains.
    """
    looked = facts.get("looked") or {}
    identity = project.id if project else str(facts["id"])
    rounds = [run for run in facts.get("rounds", ()) if run["state"] != runs.RUNNING]
    return {
        **facts,
        "id": identity,
        "name": looked.get("title") or f"Project {identity}",
        "link": project_link(project) if project else "",
        "words": project.notice.removeprefix(PREFIX).replace(f" {settings.status_url}", "") if project else "",
        "warnings": project.warnings if project else (),
        "model_version": project.model_version if project else "",
        "seen_at": project.seen_at if project else 0,
        "can_learn": bool(facts),
        "looked": looked,
        "new_annotations": looked.get("new", 0),
        "waits_for": _waits_for(settings, looked),
        "waiting": waiting,
        "repredicting": facts.get("repredicting", {}),
        "current": _current(facts, trainers, busy) if facts.get("current") else {},
        "rounds": [_round(run) for run in rounds],
        "ap_chart": _ap_chart(rounds),
    }


def project_link(project: Project) -> str:
    """Address of the project in Label Studio; "" where that is not a web address, or anybody could have sent it."""
    is_web = project.hostname.startswith(("http://", "https://"))
    return f"{project.hostname}/projects/{project.id}/data" if is_web and project.is_believed else ""


def duration(seconds: float) -> str:
    """Seconds or minutes, for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _waits_for(settings: Settings, looked: Mapping[str, Any]) -> str:
    """What has to happen before the next round."""
    new = looked.get("new", 0)
    since = f"{new} annotation(s) since the newest training." if looked else "Not looked at yet."
    ways = ["press Train now, or Start Training in Label Studio"] if new else ["it waits for annotations"]
    if settings.train_after:
        ways.append(f"it trains by itself at {settings.train_after} annotations")
    if settings.train_every_h:
        ways.append(f"it trains every {settings.train_every_h:g} h when there are new ones")
    text = "; ".join(ways)
    return f"{since} {text[0].upper()}{text[1:]}."


def _current(facts: Facts, trainers: Sequence[str], busy: str) -> Facts:
    now = dict(facts["current"])
    stage = str(now.get("stage") or "")
    now["number"] = facts["count"] + (0 if any(run["id"] == now["run"] for run in facts["rounds"]) else 1)
    record: Mapping[str, Any] = next((run for run in facts["rounds"] if run["id"] == now["run"]), {})
    now["steps"] = _steps(stage, record.get("stage_s", {}))
    now["loss_chart"] = _loss_chart(now.get("curve") or ())
    if now.get("state") == QUEUED or not stage:
        if not trainers:
            now["doing"] = "waits for a worker that takes trainings; none is alive"
        else:
            now["doing"] = f"waits until the training of {busy} is over" if busy else "waits for the training worker"
        return now
    now["doing"] = DOING.get(stage, stage)
    if now["of"]:
        now["doing"] += f", step {now['iteration']} of {now['of']}"
    now["doing"] += f"; {_time_left(now, facts['rounds'])}"
    return now


def _steps(stage: str, spent_s: Mapping[str, float]) -> list[tuple[str, str]]:
    """Each step with the time it took, where it is over, and the class of its look: done, now or nothing."""
    place = next((number for number, names in enumerate(STEPS.values()) if stage in names), -1)
    steps = []
    for number, (name, stages) in enumerate(STEPS.items()):
        took_s = sum(spent_s.get(each, 0.0) for each in stages)
        text = f"{name} ({duration(took_s)})" if number < place and took_s >= 1 else name
        steps.append((text, "done" if number < place else "now" if number == place else ""))
    return steps


def _time_left(now: Facts, rounds: Sequence[Mapping[str, Any]]) -> str:
    """From the training's own estimate and what the stages took in the newest round that was judged."""
    typical: Mapping[str, float] = next(
        (run["stage_s"] for run in rounds if run["state"] in JUDGED and run.get("stage_s")), {}
    )
    stage = now["stage"]
    spent_s = time.time() - float(now.get("stage_since") or time.time())
    own_s = now.get("eta_s")
    if own_s is None and stage in typical:
        own_s = max(1.0, typical[stage] - spent_s)
    if own_s is None:
        return f"begun {duration(spent_s)} ago, the time left is known once it learns"
    later = STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ()
    if stage in LEARNS:
        later = tuple(name for name in later if name not in LEARNS)
    total_s = own_s + sum(typical.get(name, 0.0) for name in later)
    rest = "" if typical or stage not in LEARNS else ", then it is judged"
    return f"about {duration(total_s)} left{rest}"


def _round(run: Mapping[str, Any]) -> Facts:
    took_s = run["ended_at"] - (run["started_at"] or run["ended_at"])
    texts = [text for text in (*run["reasons"], run["error"], run["hint"], run["order"], run["note"]) if text]
    return {
        **run,
        "tone": TONES.get(run["state"], "bad"),
        "minutes": duration(took_s) if took_s >= 1 else "",
        "size": _size(run["snapshot_counts"], run.get("judged_by", "")),
        "scores": _scores(run),
        # What was decided, and what failed with its fix, stands there at once; the rest on demand.
        "headlines": texts[:1] if run["state"] in JUDGED else texts,
        "texts": texts[1:] if run["state"] in JUDGED else [],
        "loss_chart": _loss_chart(run.get("losses") or ()),
        "papers": run["state"] in JUDGED,
    }


def _size(counts: Mapping[str, Any], judged_by: str = "") -> str:
    if not counts.get("images"):
        return ""
    objects = f" with {counts['objects']} objects" if "objects" in counts else ""
    held = f", {counts['holdout_images']} of them held out to judge by" if "holdout_images" in counts else ""
    if judged_by:
        held = f", judged by {judged_by}"
    return f"{counts['images']} images{objects}{held}"


def _scores(run: Mapping[str, Any]) -> str:
    parts = []
    for name, title in (("boundary_ap", "boundary AP"), ("mask_ap", "mask AP")):
        after, before = run["metrics"].get(name), run.get("before", {}).get(name)
        if isinstance(after, int | float):
            first = f"{100 * before:.1f} → " if isinstance(before, int | float) else ""
            parts.append(f"{title} {first}{100 * after:.1f}")
    return ", ".join(parts)


def _ap_chart(rounds: Sequence[Mapping[str, Any]]) -> Markup:
    judged = [run for run in reversed(rounds) if run["state"] in JUDGED]
    if len(judged) < 2:
        return Markup("")  # the round's own line says it
    refused = frozenset(float(run["number"]) for run in judged if run["state"] == runs.REJECTED)
    series = [
        Series(
            title,
            [(run["number"], 100 * run["metrics"][name]) for run in judged if _is_number(run["metrics"].get(name))],
            refused,
        )
        for name, title in (("boundary_ap", "boundary AP"), ("mask_ap", "mask AP"))
    ]
    return line_chart(series, x_label="round", y_label="AP", from_zero=True)


def _loss_chart(curve: Sequence[Sequence[float]]) -> Markup:
    return line_chart([Series("loss", [(x, y) for x, y in curve])], x_label="step", y_label="loss")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
